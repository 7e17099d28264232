//! Where a body ends, and what of what comes is the body's (RFC 9112, sections 6 and 7).

use http::{StatusCode, header};

use super::Fault;
use super::head::Head;

/// How much a chunk may have of what is no data, in bytes, and how much all trailers together.
const EXTENSION_LEN_MAX: usize = 4 << 10;
const TRAILERS_LEN_MAX: usize = 16 << 10;

/// How far a body has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are to come.
    Length(u64),
    /// It ends with its connection.
    UntilClosed,
    Chunked(Chunked),
    Over,
}

/// What comes next of a body in chunks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunked {
    /// Digits of a chunk's length.
    Len {
        len: u64,
        digits: u8,
    },
    /// What stands behind it, which means nothing; so much of it has come.
    Extension {
        len: u64,
        passed: usize,
    },
    /// The line feed behind the length.
    LenEnd(u64),
    Data(u64),
    /// The line end behind the data.
    DataEnd {
        has_return: bool,
    },
    /// Lines behind the last chunk, of which the last is empty: bytes in this one, and in all.
    Trailers {
        line: usize,
        passed: usize,
    },
}

impl Framing {
    pub(super) fn of(head: &Head) -> Result<Self, Fault> {
        if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::Over);
        }
        let mut codings = head.words(header::TRANSFER_ENCODING);
        match (codings.next(), codings.next()) {
            (None, _) => {}
            (Some(coding), None) if head.is_1_1 && coding.eq_ignore_ascii_case("chunked") => {
                return Ok(Self::Chunked(Chunked::NEXT));
            }
            _ => return Err(Fault::Malformed("its transfer coding is not known")),
        }
        let mut lengths = head.words(header::CONTENT_LENGTH);
        if !head.headers.contains_key(header::CONTENT_LENGTH) {
            return Ok(Self::UntilClosed);
        }
        let length = lengths.next().unwrap_or_default();
        let is_number = length.bytes().all(|byte| byte.is_ascii_digit());
        match length.parse() {
            Ok(len) if is_number && lengths.all(|other| other == length) => {
                Ok(if len == 0 { Self::Over } else { Self::Length(len) })
            }
            _ => Err(Fault::Malformed("its length is not known")),
        }
    }

    /// Whether its end may come unannounced.
    pub(super) fn ends_with_connection(&self) -> bool {
        *self == Self::UntilClosed
    }

    /// Hands what of `bytes` is the body's to `take`. Returns how many of them it has gone through: all, unless the body is
    /// over before.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<usize, Fault> {
        let mut rest = bytes;
        while !rest.is_empty() && *self != Self::Over {
            rest = match self {
                Self::Over => break,
                Self::UntilClosed => {
                    take(rest);
                    &[]
                }
                Self::Length(left) => {
                    let (data, rest) = split(rest, *left);
                    take(data);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::Over;
                    }
                    rest
                }
                Self::Chunked(Chunked::Data(left)) => {
                    let (data, rest) = split(rest, *left);
                    take(data);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::Chunked(Chunked::DataEnd { has_return: false });
                    }
                    rest
                }
                Self::Chunked(chunked) => {
                    match chunked.step(rest[0])? {
                        Some(next) => *chunked = next,
                        None => *self = Self::Over,
                    }
                    &rest[1..]
                }
            };
        }
        Ok(bytes.len() - rest.len())
    }
}

/// The first `len` bytes, or all, and what is behind them.
fn split(bytes: &[u8], len: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len())))
}

impl Chunked {
    const NEXT: Self = Self::Len { len: 0, digits: 0 };

    /// What comes behind `byte`, which is no data; `None` if that was the last.
    fn step(&self, byte: u8) -> Result<Option<Self>, Fault> {
        let malformed = Err(Fault::Malformed("a chunk of it cannot be read"));
        Ok(Some(match (self, byte) {
            (Self::Len { digits: 1.., len }, b'\r') => Self::LenEnd(*len),
            (Self::Len { digits: 1.., len }, b';' | b' ' | b'\t') => {
                Self::Extension { len: *len, passed: 0 }
            }
            (Self::Len { digits: digits @ 0..16, len }, byte) => {
                let Some(digit) = char::from(byte).to_digit(16) else { return malformed };
                Self::Len { len: len << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Extension { len, .. }, b'\r') => Self::LenEnd(*len),
            (Self::Extension { passed: EXTENSION_LEN_MAX.., .. }, _) => return malformed,
            (Self::Extension { len, passed }, byte) if byte != b'\n' => {
                Self::Extension { len: *len, passed: passed + 1 }
            }
            (Self::LenEnd(0), b'\n') => Self::Trailers { line: 0, passed: 0 },
            (Self::LenEnd(len), b'\n') => Self::Data(*len),
            (Self::DataEnd { has_return: false }, b'\r') => Self::DataEnd { has_return: true },
            (Self::DataEnd { has_return: true }, b'\n') => Self::NEXT,
            (Self::Trailers { line: 0, .. }, b'\n') => return Ok(None),
            (Self::Trailers { passed: TRAILERS_LEN_MAX.., .. }, _) => return malformed,
            (Self::Trailers { passed, .. }, b'\n') => {
                Self::Trailers { line: 0, passed: passed + 1 }
            }
            (Self::Trailers { line, passed }, b'\r') => {
                Self::Trailers { line: *line, passed: passed + 1 }
            }
            (Self::Trailers { line, passed }, _) => {
                Self::Trailers { line: line + 1, passed: passed + 1 }
            }
            _ => return malformed,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of `bytes`, in pieces of that length, and what is left behind the end if there is one.
    fn read(
        mut framing: Framing,
        bytes: &[u8],
        piece_len: usize,
    ) -> Option<(String, Option<usize>)> {
        let (mut body, mut passed) = (Vec::new(), 0);
        for piece in bytes.chunks(piece_len) {
            passed += framing.read(piece, |data| body.extend_from_slice(data)).ok()?;
        }
        let left = (framing == Framing::Over).then(|| bytes.len() - passed);
        Some((String::from_utf8(body).unwrap(), left))
    }

    #[track_caller]
    fn reads(framing: fn() -> Framing, bytes: &str, expected: Option<(&str, Option<usize>)>) {
        for piece_len in 1..=bytes.len().max(1) {
            let read = read(framing(), bytes.as_bytes(), piece_len);
            let read = read.as_ref().map(|(body, left)| (body.as_str(), *left));
            assert_eq!(read, expected, "{bytes:?} in pieces of {piece_len}");
        }
    }

    fn chunked() -> Framing {
        Framing::Chunked(Chunked::NEXT)
    }

    #[test]
    fn chunks_are_joined_and_what_is_behind_them_is_left() {
        reads(chunked, "5\r\nHello\r\n0\r\n\r\n", Some(("Hello", Some(0))));
        reads(
            chunked,
            "5\r\nHello\r\nC\r\n, dear world\r\n0\r\n\r\nHTTP",
            Some(("Hello, dear world", Some(4))),
        );
        reads(
            chunked,
            "0005;name=\"x\"\r\nHello\r\n000\r\na: b\r\nc: d\r\n\r\n",
            Some(("Hello", Some(0))),
        );
        reads(chunked, "5 \r\nHello\r\n0 ; x\r\n\r\n", Some(("Hello", Some(0))));
        reads(chunked, "2\r\n\r\n\r\n0\r\n\r\n", Some(("\r\n", Some(0))));
        reads(chunked, "5\r\nHel", Some(("Hel", None)));
        reads(chunked, "5\r\nHello\r\n0\r\n", Some(("Hello", None)));
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for bytes in [
            "\r\n",
            "x\r\n",
            "-1\r\nx\r\n",
            "+1\r\nx\r\n",
            "0x1\r\nx\r\n",
            ";x\r\n",
            "1\nx\n",
            "1\rx",
            "1;a\nx",
            "1\r\nxx\r\n",
            "1\r\nx\n",
            "10000000000000000\r\n",
            "1\r\nx\r\r\n",
        ] {
            reads(chunked, bytes, None);
        }
        let long = "x".repeat(EXTENSION_LEN_MAX + 1);
        assert_eq!(read(chunked(), format!("1;{long}\r\n").as_bytes(), 100), None);
        let long = "x: y\r\n".repeat(TRAILERS_LEN_MAX / 6 + 1);
        assert_eq!(read(chunked(), format!("0\r\n{long}\r\n").as_bytes(), 100), None);
    }

    #[test]
    fn a_length_is_what_it_says() {
        reads(|| Framing::Length(5), "Hello, world", Some(("Hello", Some(7))));
        reads(|| Framing::Length(5), "Hell", Some(("Hell", None)));
        reads(|| Framing::UntilClosed, "Hello", Some(("Hello", None)));
        reads(|| Framing::Over, "x", Some(("", Some(1))));
    }
}
