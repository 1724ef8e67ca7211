//! `/proc/PID/cmdline`: the arguments, each ended by a zero byte.

/// Splits the file into arguments. Empty for zombies and kernel threads.
///
/// A process that rewrote its title (as sshd and postgres do) may have left
/// one text without zero bytes, or a tail of zero bytes: the former is one
/// argument, the latter is dropped but for one, since a last argument can be
/// empty.
pub fn parse(text: &[u8]) -> Vec<Vec<u8>> {
    if text.iter().all(|&b| b == 0) {
        // A single empty argument is one zero byte; more of them are what a
        // rewritten title left behind.
        return text.first().map(|_| Vec::new()).into_iter().collect();
    }
    let tail = text.iter().rev().take_while(|&&b| b == 0).count();
    // One zero ends the last argument, a second one ends an empty argument.
    let keep = text.len() - tail + tail.min(2);
    let text = text.get(..keep).unwrap_or(text);
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    text.split(|&b| b == 0).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let cases: [(&[u8], &[&str]); 8] = [
            (b"", &[]),
            (b"\0", &[""]),
            (b"cat\0", &["cat"]),
            (b"cat\0-n\0a b\0", &["cat", "-n", "a b"]),
            (b"cat\0\0", &["cat", ""]),
            (b"x\0\0y\0", &["x", "", "y"]),
            (b"postgres: writer", &["postgres: writer"]),
            (b"title\0\0\0\0\0", &["title", ""]),
        ];
        for (text, want) in cases {
            let want: Vec<_> = want.iter().map(|a| a.as_bytes().to_vec()).collect();
            assert_eq!(parse(text), want, "{}", text.escape_ascii());
        }
    }
}
