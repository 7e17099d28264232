//! Batches as a broken disk may give them back.

use super::batch::{decode, encode};
use crate::journal::recorder::Piece;

/// Whatever stands in the file.
pub(crate) fn batch(input: &[u8]) {
    let read: Vec<_> = decode(input).collect();
    // Each piece has three numbers at least, and what cannot be read one byte.
    assert!(read.len() <= input.len() / 3 + 1);
    let pieces: Vec<_> = read.iter().flatten().collect();
    let is_broken = read.last().is_some_and(Result::is_err);
    assert_eq!(
        pieces.len() + usize::from(is_broken),
        read.len(),
        "nothing comes after what is broken"
    );
    let owned: Vec<_> = pieces
        .iter()
        .map(|piece| Piece {
            record: piece.record,
            begin: piece.begin,
            kind: piece.kind,
            text: piece.text.to_owned(),
        })
        .collect();
    let written = encode(&owned);
    assert!(written.len() <= input.len());
    let Ok(again) = decode(&written).collect::<Result<Vec<_>, _>>() else {
        panic!("what is written can be read")
    };
    assert_eq!(again.iter().collect::<Vec<_>>(), pieces);
}
