//! Signatures that are none: RFC 8725, 3.2 to 3.4. Damaged, of something else, made of numbers that mean nothing to the
//! curve, or written as certificates have them.

use serde_json::json;

use super::{Corpus, Keys, NO_TOKEN, claims, decoded, encoded, good};
use crate::key_sets::FORGED;
use crate::signer::{P256_ORDER, with};

/// RFC 8725, 3.2 and 3.3: every operation is checked, and a signature is one only of what it was made for.
pub(super) fn of_other_messages(keys: &Keys, corpus: &mut Corpus) {
    for signer in &keys.ours {
        let name = format!("{:?}", signer.algorithm);
        let (message, signature) = good(signer);
        let (_, others) = good(signer);
        let bytes = decoded(&signature);
        let mut add = |what: &str, signature: &[u8]| {
            corpus.add(
                format!("{what}: {name}"),
                format!("{message}.{}", encoded(signature)),
                FORGED,
            );
        };
        add("none", &[]);
        add("of another token", &decoded(&others));
        add("cut by a byte", &bytes[..bytes.len() - 1]);
        add("cut at the start", &bytes[1..]);
        add("half", &bytes[..bytes.len() / 2]);
        add("one byte", &bytes[..1]);
        add("longer by a byte", &[bytes.as_slice(), &[0]].concat());
        add("longer at the start", &[&[0], bytes.as_slice()].concat());
        add("twice", &[bytes.as_slice(), &bytes].concat());
        add("zeros", &vec![0; bytes.len()]);
        add("ones", &vec![0xFF; bytes.len()]);
        add("one", &[vec![0; bytes.len() - 1], vec![1]].concat());
        add("reversed", &bytes.iter().rev().copied().collect::<Vec<_>>());
        for (at, bit) in
            [(0, 0x80), (0, 1), (bytes.len() / 2, 1), (bytes.len() - 1, 1), (bytes.len() - 1, 0x80)]
        {
            let mut flipped = bytes.clone();
            flipped[at] ^= bit;
            add(&format!("bit {bit} of byte {at}"), &flipped);
        }
        for other in keys.ours.iter().filter(|other| other.algorithm != signer.algorithm) {
            let message_of_other = other.signed(&message);
            let (_, signature) = message_of_other.rsplit_once('.').unwrap();
            corpus.add(
                format!("{:?}'s under {name}", other.algorithm),
                format!("{message}.{signature}"),
                FORGED,
            );
        }
        // The message changed under it, by as little as can be.
        let (header, payload) = message.split_once('.').unwrap();
        for (what, header, payload) in [
            ("another user", header.to_owned(), encoded(claims().to_string())),
            (
                "a longer life",
                header.to_owned(),
                encoded(with(claims(), "exp", &json!(4e9)).to_string()),
            ),
            ("a space in the claims", header.to_owned(), encoded(format!("{} ", claims()))),
            ("a space in the header", encoded(format!("{} ", signer.header())), payload.to_owned()),
            ("header and claims swapped into one", format!("{header}{payload}"), String::new()),
        ] {
            let reason = if payload.is_empty() { NO_TOKEN } else { FORGED };
            corpus.add(
                format!("{what}: {name}"),
                format!("{header}.{payload}.{signature}"),
                reason,
            );
        }
    }
    for (ours, theirs) in keys.ours.iter().zip(&keys.theirs) {
        let (message, _) = good(ours);
        corpus.add(format!("an attacker's {:?}", ours.algorithm), theirs.signed(&message), FORGED);
    }
}

/// RFC 8725, 3.4: numbers that are none to the curve, and other writings of those that are.
pub(super) fn off_the_curve(keys: &Keys, corpus: &mut Corpus) {
    let [_, ec, _, ed] = &keys.ours;
    let (message, signature) = good(ec);
    let bytes = decoded(&signature);
    let (r, s) = bytes.split_at(32);
    let one = [&[0; 31][..], &[1]].concat();
    let zero = vec![0; 32];
    let order = P256_ORDER.to_vec();
    let ones = vec![0xFF; 32];
    for (what, numbers) in [
        ("r and s are 0", [zero.as_slice(), &zero]),
        ("r is 0", [&zero, s]),
        ("s is 0", [r, &zero]),
        ("r is the order", [&order, s]),
        ("s is the order", [r, &order]),
        ("both are the order", [&order, &order]),
        ("r is past the field", [&ones, s]),
        ("s is past the field", [r, &ones]),
        ("r and s are 1", [&one, &one]),
        ("r is 1", [&one, s]),
        ("s is 1", [r, &one]),
        ("r is s", [s, s]),
        ("swapped", [s, r]),
    ] {
        corpus.add(what, format!("{message}.{}", encoded(numbers.concat())), FORGED);
    }
    for (what, r, s) in
        [("as in certificates", r, s), ("zeros as in certificates", &zero[..1], &zero[..1])]
    {
        corpus.add(what, format!("{message}.{}", encoded(der(r, s))), FORGED);
    }
    let (message, signature) = good(ed);
    let bytes = decoded(&signature);
    // L, the order of Ed25519's group, least byte first: S + L is the same number to the curve.
    let order = [
        0xED, 0xD3, 0xF5, 0x5C, 0x1A, 0x63, 0x12, 0x58, 0xD6, 0x9C, 0xF7, 0xA2, 0xDE, 0xF9, 0xDE,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    let added = bytes[32..].iter().zip(order).map(|(byte, more)| {
        let sum = u16::from(*byte) + more + carry;
        carry = sum >> 8;
        sum as u8
    });
    let malleated = [&bytes[..32], &added.collect::<Vec<_>>()].concat();
    corpus.add("S + L", format!("{message}.{}", encoded(malleated)), FORGED);
    corpus.add(
        "S is 0",
        format!("{message}.{}", encoded([&bytes[..32], &[0; 32]].concat())),
        FORGED,
    );
    let neutral = [&[1][..], &[0; 63]].concat();
    corpus.add("R is neutral, S is 0", format!("{message}.{}", encoded(neutral)), FORGED);
}

/// A signature as certificates have it.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let sign = if number[0] & 0x80 == 0 { vec![] } else { vec![0] };
        [vec![0x02, (sign.len() + number.len()) as u8], sign, number.to_vec()].concat()
    };
    let numbers = [integer(r), integer(s)].concat();
    [vec![0x30, numbers.len() as u8], numbers].concat()
}
