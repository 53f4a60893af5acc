//! A redis server and clients that know what every value must be.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use levy_agent::Redis;

use super::pattern::{Random, check, fill, key};
use super::resp::{Answer, Connection};
use super::run::{Going, Outcome, Run};
use super::service::{Scratch, Service};

/// Requests sent ahead while loading and checking the whole database.
const BULK: usize = 64;

pub(super) fn run(parameters: &Redis, run: &mut Run) -> Outcome {
    let scratch = Scratch::new("redis")?;
    let socket = scratch.join("redis.sock");
    let mut server = Service::start("redis-server", &mut server(&scratch), &scratch)?;
    server.wait_for(|| ping(&socket))?;
    let keys = ((parameters.mib << 20) / parameters.value_bytes / parameters.clients).max(1);
    let mut clients = (0..parameters.clients)
        .map(|number| RespClient::open(parameters, &socket, number, keys))
        .collect::<Result<Vec<_>, _>>()?;
    clients.iter_mut().try_for_each(RespClient::load)?;
    run.stats(
        "loaded",
        [
            ("keys", (keys * parameters.clients).into()),
            ("mib", parameters.mib.into()),
        ],
    );

    let going = run.begin_work();
    let ops = AtomicU64::new(0);
    let results: Vec<_> = thread::scope(|scope| {
        let work = |client| scope.spawn(|| drive(client, &going, &ops));
        let threads: Vec<_> = clients.iter_mut().map(work).collect();
        run.watch(|| ops.load(Ordering::Relaxed));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a client panicked".into())))
            .collect()
    });
    let mut done = run.done(ops.into_inner(), "requests");
    server.alive()?;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    clients.iter_mut().try_for_each(RespClient::verify)?;
    done.detail = "every value checked".to_owned();
    Ok(done)
}

fn server(scratch: &Scratch) -> Command {
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        "0",
        "--save",
        "",
        "--appendonly",
        "no",
        "--daemonize",
        "no",
        "--unixsocket",
    ]);
    command
        .arg(scratch.join("redis.sock"))
        .arg("--dir")
        .arg(scratch.path());
    command
}

fn ping(socket: &Path) -> Option<()> {
    let answer = Connection::open(socket).ok()?.ask(&[b"PING"]).ok()?;
    (answer == Answer::Simple("PONG".to_owned())).then_some(())
}

fn drive(client: &mut RespClient<'_>, going: &Going, ops: &AtomicU64) -> Result<(), String> {
    while going.on() {
        match client.batch() {
            Ok(count) => ops.fetch_add(count, Ordering::Relaxed),
            Err(error) => {
                going.stop();
                return Err(error);
            }
        };
    }
    Ok(())
}

/// A connection with keys of its own: no other client changes them.
struct RespClient<'a> {
    parameters: &'a Redis,
    connection: Connection,
    number: u64,
    seed: u64,
    versions: Vec<u32>,
    random: Random,
    value: Vec<u8>,
}

impl<'a> RespClient<'a> {
    fn open(parameters: &'a Redis, socket: &Path, number: u64, keys: u64) -> Result<Self, String> {
        let seed = key(parameters.seed, number, 0);
        Ok(Self {
            parameters,
            connection: Connection::open(socket).map_err(lost)?,
            number,
            seed,
            versions: vec![0; keys as usize],
            random: Random::new(seed),
            value: vec![0; parameters.value_bytes as usize],
        })
    }

    fn name(&self, index: usize) -> String {
        format!("levy:{}:{index}", self.number)
    }

    fn key(&self, index: usize) -> u64 {
        key(self.seed, index as u64, u64::from(self.versions[index]))
    }

    fn send_set(&mut self, index: usize) -> Result<(), String> {
        let key = self.key(index);
        fill(&mut self.value, key);
        self.connection
            .send(&[b"SET", self.name(index).as_bytes(), &self.value])
            .map_err(lost)
    }

    fn send_get(&mut self, index: usize) -> Result<(), String> {
        self.connection
            .send(&[b"GET", self.name(index).as_bytes()])
            .map_err(lost)
    }

    fn expect_ok(&mut self) -> Result<(), String> {
        match self.connection.receive().map_err(lost)? {
            Answer::Simple(text) if text == "OK" => Ok(()),
            other => Err(format!("redis answers SET with {other:?}")),
        }
    }

    fn expect_value(&mut self, index: usize) -> Result<(), String> {
        let name = self.name(index);
        match self.connection.receive().map_err(lost)? {
            Answer::Bulk(value) if value.len() == self.value.len() => {
                check(&value, self.key(index)).map_err(|error| format!("value of {name}: {error}"))
            }
            Answer::Bulk(value) => Err(format!("value of {name}: {} bytes", value.len())),
            other => Err(format!("value of {name}: {other:?}")),
        }
    }

    /// Stores every key.
    fn load(&mut self) -> Result<(), String> {
        self.in_batches(Self::send_set, |client, _| client.expect_ok())
    }

    /// Reads every key back.
    fn verify(&mut self) -> Result<(), String> {
        self.in_batches(Self::send_get, Self::expect_value)
    }

    fn in_batches(
        &mut self,
        send: impl Fn(&mut Self, usize) -> Result<(), String>,
        expect: impl Fn(&mut Self, usize) -> Result<(), String>,
    ) -> Result<(), String> {
        let count = self.versions.len();
        for start in (0..count).step_by(BULK) {
            let batch = start..(start + BULK).min(count);
            batch.clone().try_for_each(|index| send(self, index))?;
            self.connection.flush().map_err(lost)?;
            batch.into_iter().try_for_each(|index| expect(self, index))?;
        }
        Ok(())
    }

    /// Reads and checks random keys, then overwrites them; returns the number of requests.
    fn batch(&mut self) -> Result<u64, String> {
        let keys = self.versions.len() as u64;
        let indexes: Vec<_> = (0..self.parameters.pipeline)
            .map(|_| self.random.below(keys) as usize)
            .collect();
        indexes.iter().try_for_each(|index| self.send_get(*index))?;
        self.connection.flush().map_err(lost)?;
        indexes.iter().try_for_each(|index| self.expect_value(*index))?;
        for index in &indexes {
            self.versions[*index] = self.versions[*index].wrapping_add(1);
            self.send_set(*index)?;
        }
        self.connection.flush().map_err(lost)?;
        indexes.iter().try_for_each(|_| self.expect_ok())?;
        Ok(self.parameters.pipeline * 2)
    }
}

fn lost(error: std::io::Error) -> String {
    format!("the connection to redis broke: {error}")
}
