//! The API over a real socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use levy_launcher::api_client::ClientError;
use levy_protocol::api::{GuestChange, HostChange, Phase};

use crate::harness::{MIB, Managed, PATIENCE, Told, until};

#[test]
fn a_guest_is_seen_with_its_pages_its_target_and_the_reason() {
    let managed = Managed::new(256);
    let guest_process = managed.attend("g1");
    let client = managed.client();
    until("sharing, as seen through the API", || {
        // A hundred pages may be away for a sample.
        let memory = client.guest("g1").unwrap().memory;
        memory.shared_bytes >= 900 * 4096 && memory.zero_bytes >= 900 * 4096
    });
    let guest = client.guest("g1").unwrap();
    assert_eq!((guest.pid, guest.connected), (std::process::id(), true));
    assert_eq!(guest.control.as_deref(), Some("/somewhere/ctl.sock"));
    assert_eq!(guest.domain.as_deref(), Some("test"));
    assert_eq!(
        (
            guest.limits.min_bytes,
            guest.limits.max_bytes,
            guest.limits.shares
        ),
        (4 * MIB, 16 * MIB, 1000)
    );
    let target = guest.target.unwrap();
    assert_eq!((target.bound.as_str(), target.size_bytes), ("maximum", 16 * MIB));
    assert!(
        target.explanation.starts_with("g1 should hold"),
        "{}",
        target.explanation
    );
    assert!(guest.held_bytes > 0 && guest.activity.fraction <= 1.0);

    let host = client.host().unwrap();
    assert_eq!(host.settings.budget_bytes, 256 * MIB);
    assert_eq!(
        (host.guests, host.promised_bytes, host.minimums_bytes),
        (1, 16 * MIB, 4 * MIB)
    );
    let domain = host.domains["test"];
    assert_eq!(
        (domain.guests, domain.pool_pages, domain.invalid_calls),
        (1, 16, 0)
    );
    assert!(host.spent.pools_bytes >= 16 * 4096 && host.spent.guests_bytes == guest.held_bytes);
    let spent = host.spent.guests_bytes + host.spent.pools_bytes + host.spent.manager_bytes;
    let left = host.settings.budget_bytes as i64 - spent as i64;
    assert!(
        (left - host.free_bytes.unwrap()).abs() < 16 * MIB as i64,
        "{host:?}"
    );

    let (status, balloon) = managed.request("GET", "/guests/g1/balloon/statistics", "");
    assert_eq!((status, &balloon["free_memory"]), (200, &(5 * MIB).into()));
    assert_eq!(
        (&balloon["target_mib"], &balloon["age_ms"]),
        (&0.into(), &500.into())
    );

    assert_eq!(client.direct("g1", "pause").unwrap().phase, Phase::Paused);
    assert_eq!(client.direct("g1", "resume").unwrap().phase, Phase::Running);
    let (status, stopping) = managed.request("POST", "/guests/g1/stop", "");
    assert_eq!((status, &stopping["phase"]), (202, &"stopping".into()));
    for expected in [Told::Pause(true), Told::Pause(false), Told::Stop] {
        assert_eq!(guest_process.told.recv_timeout(PATIENCE), Ok(expected));
    }
}

#[test]
fn limits_and_settings_change_while_guests_run_or_not_at_all() {
    let managed = Managed::new(256);
    let (_a, _b) = (managed.admit("a", 64), managed.admit("b", 64));
    let client = managed.client();
    let shares = GuestChange {
        shares: Some(2000),
        min_bytes: Some(32 * MIB),
    };
    let limits = client.change_guest("a", &shares).unwrap().limits;
    assert_eq!(
        (limits.shares, limits.min_bytes, limits.max_bytes),
        (2000, 32 * MIB, 64 * MIB)
    );
    assert_eq!(client.guest("b").unwrap().limits.shares, 1000);

    let change = HostChange {
        budget_bytes: Some(128 * MIB),
        tax_percent: Some(50.0),
        rebalance_seconds: Some(5.0),
    };
    let settings = client.change_host(&change).unwrap().settings;
    assert_eq!(
        (
            settings.budget_bytes,
            settings.tax_percent,
            settings.rebalance_seconds
        ),
        (128 * MIB, 50.0, 5.0)
    );

    let refused = |error: ClientError| match error {
        ClientError::Refused { status, error } => (status, error),
        other => panic!("{other:?}"),
    };
    let budget = |mib: u64| HostChange {
        budget_bytes: Some(mib * MIB),
        ..HostChange::default()
    };
    // 48 MiB are guaranteed.
    let (status, error) = refused(client.change_host(&budget(40)).unwrap_err());
    assert!(
        status == 409 && error.contains("promise") && error.contains("MiB"),
        "{error}"
    );
    let least = |min_bytes| GuestChange {
        min_bytes: Some(min_bytes),
        ..GuestChange::default()
    };
    let (status, error) = refused(client.change_guest("a", &least(65 * MIB)).unwrap_err());
    assert!(
        status == 409 && error.contains('a') && error.contains("max"),
        "{error}"
    );
    let none = GuestChange {
        shares: Some(0),
        ..GuestChange::default()
    };
    let (status, error) = refused(client.change_guest("a", &none).unwrap_err());
    assert!(
        status == 400 && error.contains("shares: it goes from 1"),
        "{error}"
    );
    assert_eq!(
        client.host().unwrap().settings,
        settings,
        "a refused change changed something"
    );
    assert_eq!(client.guest("a").unwrap().limits, limits);
}

#[test]
fn what_is_wrong_with_a_request_is_said_with_the_right_status() {
    let managed = Managed::new(256);
    let kept = managed.admit("g1", 64);
    let long = format!("{{\"tax_percent\": {}1}}", " ".repeat(20 << 10));
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("GET", "/guests/nobody", "", 404, "no guest is called \"nobody\""),
        ("GET", "/guests/g1/balloon/statistics", "", 404, "no balloon"),
        ("GET", "/what", "", 404, "no GET /what"),
        ("DELETE", "/host", "", 405, "does not take DELETE"),
        ("PUT", "/host", "{", 400, "EOF"),
        ("PUT", "/host", "{\"tax\": 5}", 400, "unknown field `tax`"),
        ("PUT", "/host", "{\"tax_percent\": 100}", 400, "below 100"),
        (
            "PUT",
            "/host",
            "{\"rebalance_seconds\": 0}",
            400,
            "rebalance_seconds",
        ),
        ("PUT", "/host", "{\"budget_bytes\": -1}", 400, "-1"),
        (
            "PUT",
            "/host",
            "{\"budget_bytes\": 0}",
            400,
            "0 bytes is out of bounds: it goes from 1 MiB",
        ),
        (
            "PUT",
            "/host",
            "{\"budget_bytes\": 109950062592491520}",
            400,
            "of this machine",
        ),
        ("PUT", "/host", "[]", 400, "not a JSON object"),
        ("PUT", "/host", " [134217728]", 400, "not a JSON object"),
        ("PUT", "/host", "", 400, "not a JSON object"),
        ("PUT", "/host", "null", 400, "not a JSON object"),
        ("PATCH", "/guests/g1", "[null, 2000]", 400, "not a JSON object"),
        ("GET", "/guests/%ff", "", 400, "name in the path"),
        ("POST", "/guests/%ff/stop", "", 400, "name in the path"),
        ("PATCH", "/guests/%ff", "{}", 400, "name in the path"),
        ("GET", "/groups/%ff", "", 400, "name in the path"),
        ("GET", "/guests/g1/", "", 404, "no GET /guests/g1/"),
        ("OPTIONS", "*", "", 404, "no OPTIONS"),
        ("TRACE", "/host", "", 405, "does not take TRACE"),
        ("PUT", "/host", &long, 413, "limit"),
        (
            "PATCH",
            "/guests/g1",
            "{\"max_bytes\": 5}",
            400,
            "unknown field `max_bytes`",
        ),
        ("PATCH", "/guests/nobody", "{}", 404, "nobody"),
        ("POST", "/guests/nobody/stop", "", 404, "nobody"),
    ];
    for (method, path, body, status, words) in cases {
        let (got, answer) = managed.request(method, path, body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(got, *status, "{method} {path}: {answer}");
        assert!(
            error.contains(words),
            "{method} {path}: {words:?} is not in {error:?}"
        );
    }
    drop(kept);
    until("the cut", || !managed.client().guest("g1").unwrap().connected);
    assert_eq!(managed.request("POST", "/guests/g1/pause", "").0, 503);
    assert_eq!(managed.raw(b"nonsense\r\n\r\n").0, 400);
}

#[test]
fn what_is_too_large_is_refused_in_few_words() {
    let managed = Managed::new(256);
    let put = |body: &str| managed.request("PUT", "/host", body);
    // A request of which the body never comes.
    let long = b"PUT /host HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n";
    for ((got, answer), status, words) in [
        (put("{\"tax_percent\": 1e308}"), 400, ": 1e308 is not a tax"),
        (
            put("{\"rebalance_seconds\": 1e99}"),
            400,
            ": 1e99 s is out of range",
        ),
        (managed.raw(long), 413, "1000000000 bytes, and the limit is 16384"),
    ] {
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(got == status && error.contains(words), "{got} {answer}");
    }
}

/// Whether the other end has neither answered nor hung up.
fn is_open(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn slow_and_broken_clients_harm_nobody() {
    let managed = Managed::new(256);
    let socket = levy_protocol::run_dir::api_socket(managed.dir.path());
    let open = |text: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(text).unwrap();
        stream
    };
    let unsent: &[u8] = b"PUT /host HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{";
    let texts = [&b""[..], b"GET /host HT", unsent];
    // A client that asks properly is answered while the slow ones are still there. On a busy machine they may be gone
    // already.
    let slow = (0..20).find_map(|_| {
        let slow: Vec<_> = texts
            .iter()
            .flat_map(|text| (0..20).map(|_| open(text)))
            .collect();
        assert_eq!(managed.request("GET", "/host", "").0, 200);
        slow.iter().all(is_open).then_some(slow)
    });
    for mut stream in slow.expect("an answer before the slow ones were cut off") {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    // Two that wait for nothing: one leaves, one sends without end.
    drop(open(b"GET /host HTTP/1.1\r\nHost: x\r\n\r\n"));
    let mut flood = open(b"GET /host HTTP/1.1\r\n");
    let line = [b'x'; 64 << 10];
    while flood.write_all(&line).is_ok() {}
    assert_eq!(managed.request("GET", "/host", "").0, 200);
}
