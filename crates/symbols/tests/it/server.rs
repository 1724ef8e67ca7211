//! A debuginfod server, played by a thread.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use leakscope_symbols::{Debuginfod, Options, Symbolizer};

use crate::fixture::{Fixture, codes, run};

/// Answers every request with `answer` (404 when `None`), and notes paths.
fn serve(answer: Option<Vec<u8>>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    // Ends with the test process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut first = String::new();
            reader.read_line(&mut first).unwrap();
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            log.lock().unwrap().push(first.trim().to_owned());
            let (status, body) = match &answer {
                Some(body) => ("200 OK", body.as_slice()),
                None => ("404 Not Found", &b""[..]),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // The client may have gone: then the test fails elsewhere.
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(body);
        }
    });
    (address, asked)
}

fn stripped() -> (Fixture, Vec<u8>) {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let debug = fixture.dir.path().join("d");
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(&fixture.program)
        .arg(&debug));
    run(Command::new("strip").arg(&fixture.program));
    let bytes = std::fs::read(&debug).unwrap();
    (fixture, bytes)
}

fn options(urls: &str, fixture: &Fixture) -> Options {
    Options {
        debuginfod: Debuginfod::from_list(urls, Some(fixture.dir.path().join("cache"))),
        ..Options::default()
    }
}

#[test]
fn a_debug_file_is_fetched_once() {
    let (fixture, debug) = stripped();
    let (empty, asked_empty) = serve(None);
    let (full, asked) = serve(Some(debug));
    let urls = format!("http://{empty} http://{full}/");
    let (frames, symbolizer) = fixture.resolve(options(&urls, &fixture));
    fixture.assert_inlined(&frames, "fetched");
    assert_eq!(codes(&symbolizer), ["debuginfod"]);
    let hex: String = fixture
        .build_id
        .iter()
        .flatten()
        .map(|b| format!("{b:02x}"))
        .collect();
    let want = format!("GET /buildid/{hex}/debuginfo HTTP/1.1");
    for log in [&asked, &asked_empty] {
        assert_eq!(log.lock().unwrap().as_slice(), std::slice::from_ref(&want));
    }

    // From the cache, without a notice.
    let (frames, symbolizer) = fixture.resolve(options(&urls, &fixture));
    fixture.assert_inlined(&frames, "cached");
    assert_eq!(codes(&symbolizer), [""; 0]);
    assert_eq!(asked.lock().unwrap().len(), 1);

    // Without a cache, in memory.
    let mut uncached = options(&urls, &fixture);
    uncached.debuginfod.as_mut().unwrap().cache_dir = None;
    fixture.assert_inlined(&fixture.resolve(uncached).0, "uncached");
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[test]
fn nobody_is_asked_when_the_names_are_here() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let (server, asked) = serve(None);
    let (frames, _) = fixture.resolve(options(&format!("http://{server}"), &fixture));
    fixture.assert_inlined(&frames, "local");
    assert!(asked.lock().unwrap().is_empty());
}

#[test]
fn another_programs_file_is_refused() {
    let (fixture, _) = stripped();
    let (_, other) = stripped_differently();
    let (server, _) = serve(Some(other));
    let (frames, symbolizer) = fixture.resolve(options(&format!("http://{server}"), &fixture));
    assert_eq!(frames[0].function, None);
    assert_eq!(codes(&symbolizer), ["no-symbols", "debuginfod"]);
    assert!(symbolizer.notices()[1].message.contains("another build id"));
}

fn stripped_differently() -> (Fixture, Vec<u8>) {
    let fixture = Fixture::c(&["-g", "-O1"]);
    let bytes = std::fs::read(&fixture.program).unwrap();
    (fixture, bytes)
}

#[test]
fn a_server_out_of_reach_is_asked_once() {
    let (fixture, _) = stripped();
    let (other, _) = stripped();
    // A port that was free a moment ago: connecting is refused at once.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let modules = [
        fixture.module(&fixture.program),
        other.module(&other.program),
    ];
    let mut symbolizer = Symbolizer::new(options(&format!("http://{gone}"), &fixture), &modules);
    let mut frame = fixture.frame();
    assert_eq!(symbolizer.resolve(frame)[0].function, None);
    frame.module.0 = 1;
    assert_eq!(symbolizer.resolve(frame)[0].function, None);
    assert_eq!(codes(&symbolizer), ["no-symbols", "debuginfod"]);
    assert!(symbolizer.notices()[1].message.contains("not asked again"));
}
