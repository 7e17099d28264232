//! A batch: the pieces of many generations in a few bytes more than their text.
//!
//! For each piece: the record's id, where its text begins, the length of its text times two (plus one for a token), and
//! the text. Numbers are LEB128: seven bits a byte, the lowest first, the highest bit set on all but the last.

use thiserror::Error;

use crate::event::Kind;
use crate::journal::recorder::{Piece, RecordId};
use crate::text::discreet;

/// The bytes are no batch.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "a batch in it cannot be read. Keep it, with the files beside it, and put a backup in its place, or nothing to begin anew"
)]
pub(super) struct Unreadable;

/// The pieces as a batch.
pub(super) fn encode(pieces: &[Piece]) -> Vec<u8> {
    // Three short numbers each.
    let len = pieces.iter().map(|piece| piece.text.len() + 12).sum();
    let mut batch = Vec::with_capacity(len);
    for Piece { record, begin, kind, text } in pieces {
        put(&mut batch, record.0.cast_unsigned());
        put(&mut batch, *begin as u64);
        put(&mut batch, (text.len() as u64) << 1 | u64::from(*kind == Kind::Token));
        batch.extend_from_slice(text.as_bytes());
    }
    batch
}

/// A piece where it lies in a batch.
#[derive(PartialEq, Eq)]
pub(super) struct PieceRef<'a> {
    pub(super) record: RecordId,
    pub(super) begin: usize,
    pub(super) kind: Kind,
    pub(super) text: &'a str,
}

discreet!(PieceRef<'_> { record, begin, kind });

/// The pieces of a batch, in their order. After one that cannot be read there are no more.
pub(super) fn decode(batch: &[u8]) -> impl Iterator<Item = Result<PieceRef<'_>, Unreadable>> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let piece = take_piece(&mut rest).ok_or(Unreadable);
        if piece.is_err() {
            rest = &[];
        }
        Some(piece)
    })
}

fn take_piece<'a>(rest: &mut &'a [u8]) -> Option<PieceRef<'a>> {
    let record = RecordId(take(rest)?.cast_signed());
    let begin = usize::try_from(take(rest)?).ok()?;
    let len_and_kind = take(rest)?;
    let (text, after) = rest.split_at_checked(usize::try_from(len_and_kind >> 1).ok()?)?;
    *rest = after;
    let kind = if len_and_kind & 1 == 1 { Kind::Token } else { Kind::Reasoning };
    Some(PieceRef { record, begin, kind, text: std::str::from_utf8(text).ok()? })
}

fn put(batch: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        batch.push(number as u8 | 0x80);
        number >>= 7;
    }
    batch.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_batch_is_read_as_it_was_written(
            pieces in proptest::collection::vec((any::<i64>(), any::<u32>(), any::<bool>(), ".{0,300}"), 0..20)
        ) {
            let pieces: Vec<_> = pieces
                .into_iter()
                .map(|(record, begin, is_token, text)| Piece {
                    record: RecordId(record),
                    begin: begin as usize,
                    kind: if is_token { Kind::Token } else { Kind::Reasoning },
                    text,
                })
                .collect();
            let batch = encode(&pieces);
            let read: Vec<_> = decode(&batch).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read.len(), pieces.len());
            for (read, piece) in read.iter().zip(&pieces) {
                let Piece { record, begin, kind, text } = piece;
                prop_assert_eq!(read, &PieceRef { record: *record, begin: *begin, kind: *kind, text });
            }
        }

        /// Whatever is in the file: an answer, and no panic.
        #[test]
        fn anything_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(decode(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn what_is_cut_short_or_no_text_is_no_batch() {
        let piece =
            Piece { record: RecordId(300), begin: 0, kind: Kind::Token, text: "Once".into() };
        let batch = encode(&[piece]);
        assert_eq!(batch.len(), 2 + 1 + 1 + 4);
        for len in 1..batch.len() {
            let read: Vec<_> = decode(&batch[..len]).collect();
            assert_eq!(read, [Err(Unreadable)], "{len}");
        }
        assert_eq!(decode(b"\x01\x00\x03\xff").last(), Some(Err(Unreadable)));
        assert_eq!(decode(&[0xff; 11]).last(), Some(Err(Unreadable)), "a number without an end");
    }
}
