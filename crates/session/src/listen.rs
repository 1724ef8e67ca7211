//! Where recorders say hello: two sockets (abstract, and a path for those who
//! changed their network namespace), the hello itself, and who may say it.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use leakscope_proc::ProcRoot;
use leakscope_wire::hello::{HELLO_WORDS, REPLY_REFUSED, REPLY_SEGMENT, WHY_FORK, WHY_START};
use leakscope_wire::layout::{MAGIC, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::place::random;

/// A recorder sends its hello in one piece right after connecting; who takes
/// longer than this is no recorder.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// How often the accepting thread looks whether the run is over.
const ACCEPT_SLICE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// Parents above a process that are looked at. Deeper trees exist only to
/// exhaust somebody.
const MAX_ANCESTORS: usize = 4096;

/// The sockets.
#[derive(Debug)]
pub(crate) struct Listener {
    sockets: Vec<UnixListener>,
    address: String,
}

impl Listener {
    /// Opens both sockets, or the one that the machine allows.
    ///
    /// # Errors
    /// When neither can be opened.
    pub(crate) fn open(path: &Path) -> io::Result<Listener> {
        let name = format!("leakscope-{:016x}", random()?);
        let abstract_socket = SocketAddr::from_abstract_name(name.as_bytes())
            .and_then(|address| UnixListener::bind_addr(&address));
        let path_socket = UnixListener::bind(path).and_then(|socket| {
            // A child that changed its user may connect too; who it is
            // decides SO_PEERCRED.
            std::fs::set_permissions(path, Permissions::from_mode(0o666))?;
            Ok(socket)
        });
        let mut sockets = Vec::new();
        let mut addresses = Vec::new();
        if let Ok(socket) = abstract_socket {
            sockets.push(socket);
            addresses.push(format!("@{name}"));
        }
        match path_socket {
            Ok(socket) => {
                sockets.push(socket);
                addresses.push(path.display().to_string());
            }
            Err(error) if sockets.is_empty() => return Err(error),
            Err(_) => {}
        }
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        Ok(Listener {
            sockets,
            address: addresses.join(";"),
        })
    }

    /// What `LEAKSCOPE_SOCKET` says.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits a moment for connections.
    pub(crate) fn accept(&self) -> Vec<UnixStream> {
        let mut waiting: Vec<PollFd<'_>> = self
            .sockets
            .iter()
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        // A failing poll (a signal) is a look in vain.
        let _ = poll(&mut waiting, Some(&ACCEPT_SLICE));
        let mut accepted = Vec::new();
        for socket in &self.sockets {
            match socket.accept() {
                Ok((stream, _)) => accepted.push(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Out of descriptors: those in use are closed soon.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        accepted
    }
}

/// Why a recorder says hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A new process image.
    Start,
    /// A forked child.
    Fork,
}

/// A hello that may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Process id in our namespace, from the kernel.
    pub pid: u32,
    /// Why.
    pub why: Why,
    /// Address-space limit, bytes; `u64::MAX` for none.
    pub address_space: u64,
}

impl Hello {
    /// Reads a hello and finds out whose it is.
    ///
    /// # Errors
    /// When it is none, of another version, too slow, or its sender is not in
    /// our namespace.
    pub(crate) fn read(stream: &mut UnixStream) -> io::Result<Hello> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(HELLO_PATIENCE))?;
        stream.set_write_timeout(Some(HELLO_PATIENCE))?;
        let credentials = rustix::net::sockopt::socket_peercred(&*stream)?;
        let pid = u32::try_from(credentials.pid.as_raw_nonzero().get()).unwrap_or(0);
        let mut bytes = [0u8; HELLO_WORDS * 8];
        stream.read_exact(&mut bytes)?;
        Hello::parse(pid, &bytes).ok_or_else(|| io::Error::other("not a hello"))
    }

    fn parse(pid: u32, bytes: &[u8; HELLO_WORDS * 8]) -> Option<Hello> {
        let mut words = [0u64; HELLO_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let [magic, version, _, _, why, address_space, ..] = words;
        if pid == 0 || magic != MAGIC || version != VERSION {
            return None;
        }
        let why = match why {
            WHY_START => Why::Start,
            WHY_FORK => Why::Fork,
            _ => return None,
        };
        Some(Hello {
            pid,
            why,
            address_space,
        })
    }
}

/// Answers with a segment, or without one: not recorded.
///
/// # Errors
/// When the recorder is gone.
pub(crate) fn reply(stream: &UnixStream, segment: Option<&File>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let byte = [match segment {
        Some(_) => REPLY_SEGMENT,
        None => REPLY_REFUSED,
    }];
    let descriptors;
    if let Some(file) = segment {
        descriptors = [file.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let parts = [io::IoSlice::new(&byte)];
    sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// True when `pid` is `ancestor` or stems from it. As a subreaper we stay the
/// ancestor of every orphan, so the answer does not depend on who died.
pub(crate) fn descends(proc: &ProcRoot, pid: u32, ancestor: u32) -> bool {
    let mut at = pid;
    for _ in 0..MAX_ANCESTORS {
        if at == ancestor {
            return true;
        }
        match proc.process(at).stat() {
            Ok(stat) if stat.parent > 0 => at = stat.parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn words(magic: u64, why: u64) -> [u8; 64] {
        let mut bytes = [0u8; 64];
        for (i, word) in [magic, VERSION, 7, 5, why, 1 << 33].iter().enumerate() {
            bytes[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn refuses_what_is_no_hello() {
        let hello = Hello::parse(31, &words(MAGIC, WHY_FORK)).unwrap();
        assert_eq!((hello.pid, hello.why), (31, Why::Fork));
        assert_eq!(hello.address_space, 1 << 33);
        assert_eq!(Hello::parse(0, &words(MAGIC, WHY_FORK)), None);
        assert_eq!(Hello::parse(31, &words(MAGIC, 9)), None);
        assert_eq!(Hello::parse(31, &words(MAGIC + 1, WHY_START)), None);
    }

    #[test]
    fn hands_over_a_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::open(&dir.path().join("s")).unwrap();
        let (name, path) = listener.address().split_once(';').unwrap();
        assert!(name.starts_with("@leakscope-"));
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(&words(MAGIC, WHY_START)).unwrap();
        let mut served = listener.accept();
        let mut server = served.pop().unwrap();
        let hello = Hello::read(&mut server).unwrap();
        assert_eq!(hello.pid, std::process::id());
        let file = File::open("/dev/null").unwrap();
        reply(&server, Some(&file)).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0u8; 1];
        let mut parts = [io::IoSliceMut::new(&mut byte)];
        let flags = rustix::net::RecvFlags::empty();
        rustix::net::recvmsg(&client, &mut parts, &mut control, flags).unwrap();
        let received = control.drain().count();
        assert_eq!((byte, received), ([REPLY_SEGMENT], 1));
        reply(&server, None).unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [REPLY_REFUSED]);
    }

    #[test]
    fn knows_its_descendants() {
        let proc = ProcRoot::default();
        let own = std::process::id();
        let parent = proc.process(own).stat().unwrap().parent;
        assert!(descends(&proc, own, own));
        assert!(descends(&proc, own, parent));
        assert!(!descends(&proc, parent, own));
        assert!(!descends(&proc, u32::MAX, own));
    }
}
