//! One sentence on standard error, which is Postgres's log. Only when a call or the start fails.

use core::fmt::{Arguments, Write};

use crate::calls;

/// Longest line, bytes: an answer's text and a head.
const LINE_BYTES: usize = 640;

/// A line being put together on the stack; what does not fit is left out.
struct Line {
    bytes: [u8; LINE_BYTES],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let rest = self.bytes.get_mut(self.length..).unwrap_or(&mut []);
        for (to, from) in rest.iter_mut().zip(text.bytes()) {
            // One complaint is one line, whatever a path or an answer contains.
            *to = if from.is_ascii_control() { b' ' } else { from };
            self.length = self.length.saturating_add(1);
        }
        Ok(())
    }
}

/// Writes the sentence in one call, so that lines of several processes do not mix. Leaves errno alone.
pub fn complain(sentence: Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_BYTES], length: 0 };
    let _ = write!(line, "treering pages: {sentence}");
    line.length = line.length.min(LINE_BYTES.saturating_sub(1));
    if let Some(end) = line.bytes.get_mut(line.length) {
        *end = b'\n';
    }
    let length = line.length.saturating_add(1);
    // SAFETY: `length` bytes of the line, at most all of it.
    calls::keeping_errno(|| unsafe {
        calls::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), length)
    });
}
