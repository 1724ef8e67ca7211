//! `/proc/PID/fd`: open descriptors, from the text of their links.

use crate::number::decimal;

/// An open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// What the link says; any bytes.
    pub target: Vec<u8>,
    /// What the text means.
    pub kind: DescriptorKind,
}

/// What a descriptor refers to, as far as the link's text tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorKind {
    /// File, directory or device with a path.
    Path,
    /// The same, but the path has been removed since.
    Deleted,
    /// Memory file (`memfd_create`).
    Memory,
    /// Socket and its inode.
    Socket(u64),
    /// Pipe and its inode.
    Pipe(u64),
    /// eventfd, epoll, timerfd, signalfd, inotify…: see the target's text.
    Anonymous,
    /// Text that no known kernel writes.
    Unknown,
}

/// Tells what the link text of a descriptor means.
pub fn classify(target: &[u8]) -> DescriptorKind {
    // /var/log/x            socket:[31337]        anon_inode:[eventpoll]
    // /var/log/x (deleted)  pipe:[4711]           /memfd:name (deleted)
    if target.starts_with(b"/memfd:") {
        DescriptorKind::Memory
    } else if target.starts_with(b"/") {
        if target.ends_with(b" (deleted)") {
            DescriptorKind::Deleted
        } else {
            DescriptorKind::Path
        }
    } else if let Some(inode) = numbered(target, b"socket:[") {
        DescriptorKind::Socket(inode)
    } else if let Some(inode) = numbered(target, b"pipe:[") {
        DescriptorKind::Pipe(inode)
    } else if target.starts_with(b"anon_inode:") {
        DescriptorKind::Anonymous
    } else {
        DescriptorKind::Unknown
    }
}

fn numbered(target: &[u8], prefix: &[u8]) -> Option<u64> {
    decimal(target.strip_prefix(prefix)?.strip_suffix(b"]")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let cases: [(&[u8], DescriptorKind); 9] = [
            (b"/etc/passwd", DescriptorKind::Path),
            (b"/tmp/a b (deleted)", DescriptorKind::Deleted),
            (b"/memfd:seg (deleted)", DescriptorKind::Memory),
            (b"socket:[31337]", DescriptorKind::Socket(31337)),
            (b"socket:[]", DescriptorKind::Unknown),
            (b"pipe:[4711]", DescriptorKind::Pipe(4711)),
            (b"anon_inode:[eventpoll]", DescriptorKind::Anonymous),
            (b"\xff", DescriptorKind::Unknown),
            (b"", DescriptorKind::Unknown),
        ];
        for (text, kind) in cases {
            assert_eq!(classify(text), kind);
        }
    }
}
