//! Where lines break, and which characters are spelled out.

use std::io;

use serde_json::ser::Formatter;

use crate::escape::is_hostile;

/// Objects nested deeper than this stand on one line: a frame, totals.
const ONE_LINE_BELOW: usize = 5;

/// Indented JSON, one line per frame, whose strings hold nothing that a
/// terminal obeys: JSON allows DEL, C1 and bidirectional controls as they
/// are, but people `cat` files.
#[derive(Default)]
pub(super) struct Layout {
    depth: usize,
    /// Depth of the object that is being written on one line.
    one_line: Option<usize>,
    has_value: bool,
}

impl Layout {
    fn open(&mut self) {
        self.depth += 1;
        self.has_value = false;
    }

    fn close<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if self.has_value {
            self.new_line(out)?;
        }
        if self.one_line.is_some_and(|d| self.depth < d) {
            self.one_line = None;
        }
        self.has_value = true;
        Ok(())
    }

    fn between<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(if self.one_line.is_some() { b", " } else { b"," })?;
        }
        self.new_line(out)
    }

    fn new_line<W: io::Write + ?Sized>(&self, out: &mut W) -> io::Result<()> {
        if self.one_line.is_some() {
            return Ok(());
        }
        out.write_all(b"\n")?;
        for _ in 0..self.depth {
            out.write_all(b"  ")?;
        }
        Ok(())
    }
}

impl Formatter for Layout {
    fn begin_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open();
        out.write_all(b"[")
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out)?;
        out.write_all(b"]")
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.between(out, first)
    }

    fn end_array_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open();
        if self.depth > ONE_LINE_BELOW && self.one_line.is_none() {
            self.one_line = Some(self.depth);
        }
        out.write_all(b"{")
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out)?;
        out.write_all(b"}")
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.between(out, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Nearly all text is plain; what JSON itself forbids is not in here.
        // No early end, so that many bytes are looked at at once.
        let plain = |hostile, byte: &u8| hostile | (*byte >= 0x7f) | (*byte < 0x20);
        if !fragment.as_bytes().iter().fold(false, plain) {
            return out.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some(at) = rest.find(is_hostile) {
            let (plain, tail) = rest.split_at(at);
            out.write_all(plain.as_bytes())?;
            let mut chars = tail.chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        out.write_all(rest.as_bytes())
    }
}
