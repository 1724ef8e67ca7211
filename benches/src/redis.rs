//! redis-server's work: redis-benchmark over loopback, bounded, then shutdown.

use crate::tree;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One client of one server.
pub struct Client {
    port: u16,
    requests: u64,
}

impl Client {
    /// Picks a free port.
    ///
    /// # Errors
    /// When there is no loopback.
    pub fn new(requests: u64) -> Result<Client, String> {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let address = socket.and_then(|socket| socket.local_addr());
        let address = address.map_err(|e| format!("failed to find a free port: {e}"))?;
        Ok(Client {
            port: address.port(),
            requests,
        })
    }

    /// The server keeps nothing on disk and forks for nothing.
    pub fn server_arguments(&self, folder: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            .map(OsString::from)
            .into();
        words.extend(["--port".into(), self.port.to_string().into()]);
        words.extend(["--dir".into(), folder.as_os_str().to_owned()]);
        words
    }

    /// Sends the work and tells the server to end; waits at most so long for
    /// it to listen.
    ///
    /// # Errors
    /// When the server does not answer; it is then for the caller's time limit
    /// to end it.
    pub fn drive(&self, server: u32, limit: Duration) -> Result<(), String> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port);
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            // A zombie has no memory.
            if tree::memory(server).is_none() || began.elapsed() > limit {
                return Err("redis-server does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let port = self.port.to_string();
        let work = Command::new("redis-benchmark")
            .args(["-p", &port, "-n", &self.requests.to_string()])
            .args(["-r", "100000", "-d", "100", "-q"])
            .args(["-t", "set,get,incr,lpush,hset,zadd"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let end = Command::new("redis-cli")
            .args(["-p", &port, "shutdown", "nosave"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match (work, end) {
            (Ok(work), Ok(_)) if work.success() => Ok(()),
            (Ok(_), Ok(_)) => Err("redis-benchmark failed".into()),
            (Err(e), _) | (_, Err(e)) => Err(format!("failed to run redis's tools: {e}")),
        }
    }
}
