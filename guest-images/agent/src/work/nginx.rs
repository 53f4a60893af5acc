//! An nginx server and clients that know every file's bytes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use levy_agent::Nginx;

use super::http::HttpClient;
use super::pattern::{Random, check, fill, key};
use super::run::{Going, Outcome, Run};
use super::service::{Scratch, Service};

pub(super) fn run(parameters: &Nginx, run: &mut Run) -> Outcome {
    let scratch = Scratch::new("nginx")?;
    write_files(parameters, &scratch)?;
    let config = scratch.join("nginx.conf");
    fs::write(&config, configuration(scratch.path()))
        .map_err(|error| format!("{}: {error}", config.display()))?;
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(scratch.path())
        .arg("-c")
        .arg(&config)
        .arg("-e")
        .arg(scratch.join("error.log"));
    let mut server = Service::start("nginx", &mut command, &scratch)?;
    let socket = scratch.join("nginx.sock");
    server.wait_for(|| HttpClient::open(&socket).ok()?.get("/0", &mut Vec::new()).ok())?;

    let going = run.begin_work();
    let ops = AtomicU64::new(0);
    let results: Vec<_> = thread::scope(|scope| {
        let work = |number| {
            let (going, ops, socket) = (&going, &ops, &socket);
            scope.spawn(move || drive(parameters, number, socket, going, ops))
        };
        let threads: Vec<_> = (0..parameters.clients).map(work).collect();
        run.watch(|| ops.load(Ordering::Relaxed));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a client panicked".into())))
            .collect()
    });
    let mut done = run.done(ops.into_inner(), "requests");
    server.alive()?;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    done.detail = "every body checked".to_owned();
    Ok(done)
}

fn write_files(parameters: &Nginx, scratch: &Scratch) -> Result<(), String> {
    let mut body = vec![0; (parameters.file_kib << 10) as usize];
    fs::create_dir(scratch.join("files")).map_err(|error| error.to_string())?;
    for number in 0..parameters.files {
        fill(&mut body, key(parameters.seed, number, 0));
        let path = scratch.join(&format!("files/{number}"));
        fs::write(&path, &body).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
user root root;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 1000000; sendfile on;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    server {{ listen unix:{dir}/nginx.sock; root {dir}/files; }}
}}
"
    )
}

fn drive(
    parameters: &Nginx,
    number: u64,
    socket: &Path,
    going: &Going,
    ops: &AtomicU64,
) -> Result<(), String> {
    let result = fetch(parameters, number, socket, going, ops);
    if result.is_err() {
        going.stop();
    }
    result
}

fn fetch(
    parameters: &Nginx,
    number: u64,
    socket: &Path,
    going: &Going,
    ops: &AtomicU64,
) -> Result<(), String> {
    let wrong = |error| format!("the connection to nginx broke: {error}");
    let mut client = HttpClient::open(socket).map_err(wrong)?;
    let mut random = Random::new(key(parameters.seed, number, 1));
    let mut body = Vec::new();
    while going.on() {
        let file = random.below(parameters.files);
        client.get(&format!("/{file}"), &mut body).map_err(wrong)?;
        if body.len() as u64 != parameters.file_kib << 10 {
            return Err(format!("file {file}: {} bytes", body.len()));
        }
        check(&body, key(parameters.seed, file, 0)).map_err(|error| format!("file {file}: {error}"))?;
        ops.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
