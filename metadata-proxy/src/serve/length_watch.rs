//! Notices a `Content-Length` in what a guest sends.
//!
//! Where a request has both a length and chunks, the parser takes the chunks and hides the length
//! (RFC 9112, 6.3), so that nobody above it can refuse such a request, as the same section allows and
//! as is wanted here: a way to smuggle is told from a mistake by nobody. This looks at the raw bytes,
//! knows nothing of requests, and so never forgets: once a connection has carried a length, chunks
//! on it are refused. A guest that uses both in turn gets a 400 for it; none is known.

const NAME: &[u8] = b"content-length:";

/// Where in a line the bytes seen so far end.
pub(super) struct LengthWatch {
    /// How much of the name the line begins with; `None` for a line that is something else.
    matched: Option<usize>,
}

impl LengthWatch {
    /// A connection that has carried nothing.
    pub(super) const fn new() -> Self {
        Self { matched: Some(0) }
    }

    /// Takes the next bytes, however they are cut; true if a length is among them.
    pub(super) fn sees(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        loop {
            while let Some(matched) = self.matched {
                let Some((byte, tail)) = rest.split_first() else {
                    return false;
                };
                rest = tail;
                if *byte == b'\n' {
                    self.matched = Some(0);
                } else if byte.eq_ignore_ascii_case(&NAME[matched]) {
                    if matched + 1 == NAME.len() {
                        self.matched = None;
                        return true;
                    }
                    self.matched = Some(matched + 1);
                } else {
                    self.matched = None;
                }
            }
            match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    rest = &rest[end + 1..];
                    self.matched = Some(0);
                }
                None => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sees(pieces: &[&[u8]]) -> bool {
        let mut watch = LengthWatch::new();
        pieces.iter().any(|piece| watch.sees(piece))
    }

    #[test]
    fn a_length_is_seen_whatever_its_case_and_line_ends() {
        assert!(sees(&[
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
        ]));
        assert!(sees(&[b"POST / HTTP/1.1\nCONTENT-length:1\n\n"]));
        assert!(sees(&[
            b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 0\r\n"
        ]));
    }

    #[test]
    fn other_lines_are_none() {
        assert!(!sees(&[
            b"GET /content-length: HTTP/1.1\r\nX-Content-Length: 1\r\n\r\n"
        ]));
        assert!(!sees(&[
            b"GET / HTTP/1.1\r\nContent-Lengthy: 1\r\nContent: Content-Length: 1\r\n"
        ]));
        assert!(!sees(&[b"", b"\n\n\ncontent-", b"\n", b"length:"]));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            before in "[a-z: \n-]{0,30}",
            has_length in any::<bool>(),
            after in "[a-z: \n-]{0,30}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let length = if has_length { "\nContent-Length: 5\n" } else { "" };
            let text = format!("{before}{length}{after}");
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> =
                at.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            let expected =
                text.split('\n').any(|line| line.to_lowercase().starts_with("content-length:"));
            prop_assert_eq!(sees(&pieces), expected);
        }
    }
}
