//! Takes an answer's body out of what was read, piece by piece.

use bytes::{Buf as _, BytesMut};

use super::{Garbled, HEAD_LIMIT, LEAST_READ, head::Framing};

/// Longest line that says a chunk's size, bytes: its extensions are of no use to anybody.
const LINE_LIMIT: usize = 4 * 1024;
/// Most room for one read of a body whose length is known.
const MOST_ROOM: usize = 64 * 1024;
/// Room for one read of a body whose length is not known.
const ROOM: usize = 16 * 1024;

/// What is left of a body.
#[derive(Debug)]
pub(super) enum Decoder {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

/// Where in a chunked body it is.
#[derive(Debug)]
pub(super) enum Chunks {
    /// Before the line with a chunk's size.
    Size,
    /// Inside a chunk, so many bytes before its end.
    Data(u64),
    /// Before the line end after a chunk.
    DataEnd,
    /// In the trailer, of which so many bytes were seen.
    Trailer(usize),
    /// After the end.
    End,
}

/// What was found next.
#[derive(Debug)]
pub(super) enum Piece {
    /// Some of the body.
    Data(BytesMut),
    /// The rest has not been read yet.
    More,
    /// The body is complete.
    End,
}

impl Decoder {
    pub(super) const fn of(framing: &Framing) -> Self {
        match framing {
            Framing::Empty => Self::Length(0),
            Framing::Length(length) => Self::Length(*length),
            Framing::Chunked => Self::Chunked(Chunks::Size),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Takes the next piece out of `input`.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Piece, Garbled> {
        match self {
            Self::Length(0) => Ok(Piece::End),
            Self::Length(left) => Ok(take(input, left)),
            Self::Chunked(chunks) => chunks.next(input),
            Self::UntilClose if input.is_empty() => Ok(Piece::More),
            Self::UntilClose => Ok(Piece::Data(input.split())),
        }
    }

    /// Whether the upstream's closing is the proper end.
    pub(super) const fn ends_with_close(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// How many bytes are still to come, where that is known.
    pub(super) const fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(Chunks::End) => Some(0),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Whether the whole is known to be longer than `limit`, `so_far` of it being decoded.
    pub(super) fn exceeds(&self, limit: usize, so_far: usize) -> bool {
        let least = (so_far as u64).saturating_add(self.left().unwrap_or(0));
        least > limit as u64
    }

    /// How much room the next read should have.
    pub(super) fn room(&self) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left)
                .unwrap_or(MOST_ROOM)
                .clamp(LEAST_READ, MOST_ROOM),
            Self::Chunked(_) | Self::UntilClose => ROOM,
        }
    }
}

impl Chunks {
    fn next(&mut self, input: &mut BytesMut) -> Result<Piece, Garbled> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = line(input, LINE_LIMIT)? else {
                        return Ok(Piece::More);
                    };
                    *self = match chunk_size(&line)? {
                        0 => Self::Trailer(0),
                        size => Self::Data(size),
                    };
                }
                Self::Data(0) => *self = Self::DataEnd,
                Self::Data(left) => return Ok(take(input, left)),
                Self::DataEnd => {
                    let Some(line) = line(input, 2)? else {
                        return Ok(Piece::More);
                    };
                    if !line.is_empty() {
                        return Err("a chunk is longer than it says".into());
                    }
                    *self = Self::Size;
                }
                Self::Trailer(seen) => {
                    let Some(line) = line(input, HEAD_LIMIT)? else {
                        return Ok(Piece::More);
                    };
                    *seen += line.len() + 1;
                    if line.is_empty() {
                        *self = Self::End;
                    } else if *seen > HEAD_LIMIT {
                        return Err("its trailer is longer than 32 KiB".into());
                    }
                }
                Self::End => return Ok(Piece::End),
            }
        }
    }
}

/// Takes at most `left` bytes.
fn take(input: &mut BytesMut, left: &mut u64) -> Piece {
    if input.is_empty() {
        return Piece::More;
    }
    let len = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    *left -= len as u64;
    Piece::Data(input.split_to(len))
}

/// Takes one line of at most `limit` bytes, without its end, which may be a bare LF.
fn line(input: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, Garbled> {
    let Some(end) = input.iter().take(limit).position(|byte| *byte == b'\n') else {
        return if input.len() >= limit {
            Err("a line between its chunks does not end".into())
        } else {
            Ok(None)
        };
    };
    let mut line = input.split_to(end);
    input.advance(1);
    if line.last() == Some(&b'\r') {
        line.truncate(end - 1);
    }
    Ok(Some(line))
}

/// Parses `SIZE [; extensions]`.
fn chunk_size(line: &[u8]) -> Result<u64, Garbled> {
    let size = line
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    let text = std::str::from_utf8(size)
        .ok()
        // `from_str_radix` would take a sign.
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    text.and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or(Garbled::from("a chunk's size is no size"))
}
