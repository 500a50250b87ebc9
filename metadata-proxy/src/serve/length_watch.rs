//! Notices a `Content-Length` beside a `Transfer-Encoding` in what a guest sends.
//!
//! Where a request has both, the parser takes the chunks and hides the length (RFC 9112, 6.3), so that
//! nobody above it can refuse such a request, as the same section allows and as is wanted here: a way
//! to smuggle is told from a mistake by nobody. This looks at the raw bytes and knows nothing of
//! requests. A head has no empty line in it, so whatever has both has them between two empty lines.
//! A body may look the same; such a connection takes no chunks any more, and nothing else is lost.

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";

/// What the lines seen since the last empty one have said.
pub(super) struct LengthWatch {
    /// How the line under way begins, as far as it tells: up to its colon.
    line: [u8; ENCODING.len()],
    /// Bytes of `line`; `None` once the rest of the line tells nothing more.
    begun: Option<usize>,
    has_length: bool,
    has_encoding: bool,
}

impl LengthWatch {
    /// A connection that has carried nothing.
    pub(super) const fn new() -> Self {
        Self {
            line: [0; ENCODING.len()],
            begun: Some(0),
            has_length: false,
            has_encoding: false,
        }
    }

    /// Takes the next bytes, however they are cut; true if a head among them has both.
    pub(super) fn sees_both(&mut self, bytes: &[u8]) -> bool {
        let mut both = false;
        let mut rest = bytes;
        while let Some((byte, tail)) = rest.split_first() {
            let Some(begun) = self.begun else {
                let Some(end) = memchr::memchr(b'\n', rest) else {
                    break;
                };
                rest = &rest[end + 1..];
                self.begun = Some(0);
                continue;
            };
            rest = tail;
            if *byte == b'\n' {
                if matches!(self.line[..begun], [] | [b'\r']) {
                    self.has_length = false;
                    self.has_encoding = false;
                }
                self.begun = Some(0);
                continue;
            }
            if begun == 0 && !matches!(*byte, b'C' | b'c' | b'T' | b't' | b'\r') {
                // Neither of the two, nor empty.
                self.begun = None;
                continue;
            }
            self.line[begun] = *byte;
            let line = &self.line[..=begun];
            self.begun = Some(begun + 1);
            if *byte == b':' || line.len() == self.line.len() {
                self.has_length |= line.eq_ignore_ascii_case(LENGTH);
                self.has_encoding |= line.eq_ignore_ascii_case(ENCODING);
                both |= self.has_length && self.has_encoding;
                self.begun = None;
            }
        }
        both
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sees_both(pieces: &[&[u8]]) -> bool {
        let mut watch = LengthWatch::new();
        // Every piece is taken, as by a connection.
        pieces
            .iter()
            .fold(false, |seen, piece| watch.sees_both(piece) | seen)
    }

    #[test]
    fn both_in_one_head_are_seen_whatever_their_case_and_line_ends() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING:chunked\r\nHost: a\r\ncontent-length:1\r\n\r\n",
            "POST / HTTP/1.1\nContent-length: 1\ntransfer-Encoding: chunked\n\n",
            "\r\n\nGET / HTTP/1.1\r\n\r\nP / HTTP/1.1\r\ncontent-length: 0\r\ntransfer-encoding: x\r\n",
        ] {
            assert!(sees_both(&[head.as_bytes()]), "{head:?}");
        }
    }

    #[test]
    fn one_of_them_or_each_in_a_head_of_its_own_is_nothing() {
        for heads in [
            "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET \
             PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
             POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "GET /content-length: HTTP/1.1\r\nX-Content-Length: 1\r\nTransfer-Encoding: x\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Lengthy: 1\r\nA: Content-Length: 1\r\nTransfer-Encoding: x\r\n",
            "\n\n\ncontent-\nlength:\ntransfer-encoding:",
        ] {
            assert!(!sees_both(&[heads.as_bytes()]), "{heads:?}");
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            lines in prop::collection::vec(
                prop_oneof![
                    Just("Content-Length: 5".to_owned()),
                    Just("Transfer-Encoding: chunked".to_owned()),
                    Just(String::new()),
                    "[a-z:\r -]{0,30}",
                ],
                0..12,
            ),
            line_end in prop_oneof![Just("\n"), Just("\r\n")],
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let text = lines.join(line_end);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> =
                at.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            let lines: Vec<String> = text.split('\n').map(str::to_lowercase).collect();
            let expected = lines.split(|line| line.is_empty() || line == "\r").any(|head| {
                let has = |name: &str| head.iter().any(|line| line.starts_with(name));
                has("content-length:") && has("transfer-encoding:")
            });
            prop_assert_eq!(sees_both(&pieces), expected);
        }
    }
}
