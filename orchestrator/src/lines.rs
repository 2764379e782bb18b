//! Bytes of a guest's log as lines that are safe to show.

/// The longest line that is shown in one piece, in bytes.
pub const LINE_BYTES_MAX: usize = 4096;

/// Cuts a stream of bytes into lines and makes what a terminal must not see visible.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes of the stream and hands out every line that they complete.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for byte in bytes {
            if *byte == b'\n' {
                self.emit(&mut line);
                continue;
            }
            self.pending.push(*byte);
            if self.pending.len() == LINE_BYTES_MAX {
                self.emit(&mut line);
            }
        }
    }

    /// Hands out the last line if the stream ended without a newline.
    pub fn finish(&mut self, mut line: impl FnMut(&str)) {
        if !self.pending.is_empty() {
            self.emit(&mut line);
        }
    }

    fn emit(&mut self, line: &mut impl FnMut(&str)) {
        let bytes = self.pending.strip_suffix(b"\r").unwrap_or(&self.pending);
        line(&visible(bytes));
        self.pending.clear();
    }
}

/// `bytes` as text: control characters (but tabs) and bytes that are no UTF-8 as escapes.
#[must_use]
pub fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let hidden = character.is_control() && character != '\t';
            if hidden || is_format(character) {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Whether a character changes how its neighbours are shown without being seen itself.
fn is_format(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| seen.push(line.to_owned()));
        }
        lines.finish(|line| seen.push(line.to_owned()));
        seen
    }

    #[test]
    fn lines_are_cut_wherever_the_reads_end() {
        assert_eq!(lines(&[b"a\nb", b"c\r\n", b"\n", b"d"]), ["a", "bc", "", "d"]);
    }

    #[test]
    fn escape_sequences_and_direction_marks_become_visible() {
        let shown = visible("\x1b[31mred\u{202e}\u{7}\tx".as_bytes());
        assert_eq!(shown, "\\u{1b}[31mred\\u{202e}\\u{7}\tx");
    }

    #[test]
    fn every_character_that_only_changes_its_neighbours_becomes_visible() {
        let hidden =
            ['\u{ad}', '\u{61c}', '\u{200e}', '\u{2066}', '\u{fff9}', '\u{fffb}', '\u{e0000}'];
        for character in hidden.into_iter().chain('\u{e0020}'..='\u{e007f}') {
            let shown = visible(format!("a{character}b").as_bytes());
            assert_eq!(shown, format!("a\\u{{{:x}}}b", u32::from(character)));
        }
        for character in ['\u{ac}', '\u{61b}', '\u{fffd}', '\u{e0100}'] {
            assert_eq!(visible(character.to_string().as_bytes()), character.to_string());
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_become_visible() {
        assert_eq!(visible(b"a\xff\xc3z\xc3\xa9"), "a\\xff\\xc3zé");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let long = vec![b'x'; 2 * LINE_BYTES_MAX + 1];
        assert_eq!(lines(&[&long]).iter().map(String::len).collect::<Vec<_>>(), [4096, 4096, 1]);
    }
}
