//! The decoder against a second reading of the standard, on whatever a fuzzer sends.

use super::{BYTE_ORDER_MARK, Decoder, ID_LEN_MAX};

/// Name, data and id of each event.
type Events = Vec<(String, String, String)>;

/// The first four bytes are the lengths of the pieces that the rest comes in, one after the other and again.
pub(crate) fn decode(input: &[u8]) {
    let Some((lens, stream)) = input.split_first_chunk::<4>() else { return };
    let expected = read_whole(stream);
    assert_eq!(decode_pieces([stream]), expected, "whole");
    assert_eq!(decode_pieces(stream.chunks(1)), expected, "byte by byte");
    let mut rest = stream;
    let cut = lens.iter().cycle().map_while(|len| {
        let (piece, after) = rest.split_at(usize::from(*len).min(rest.len()));
        rest = after;
        Some(piece)
    });
    // Pieces of no length at all move nothing, so as many as there are bytes need not do; the last has what is left.
    let mut pieces: Vec<_> = cut.take(stream.len()).collect();
    pieces.push(rest);
    assert_eq!(decode_pieces(pieces), expected, "in pieces of {lens:?}");
}

fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Events, Option<u64>) {
    let mut decoder = Decoder::new();
    let mut events = Vec::new();
    for piece in pieces {
        let pushed = decoder.push(piece, |event| {
            events.push((event.name.into_owned(), event.data.into_owned(), event.id.into_owned()));
        });
        assert_eq!(pushed, Ok(()), "no fuzzer sends as much as is too much");
    }
    (events, decoder.retry_ms())
}

/// The standard, section 9.2.6, written down once more, without a thought for speed or for pieces.
fn read_whole(stream: &[u8]) -> (Events, Option<u64>) {
    let stream = stream.strip_prefix(BYTE_ORDER_MARK).unwrap_or(stream);
    let mut lines = lines(stream);
    // What no line end follows is not interpreted.
    lines.pop();
    let (mut events, mut retry) = (Events::new(), None);
    let (mut name, mut data, mut id) = (Vec::new(), None::<Vec<u8>>, Vec::new());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for line in lines {
        if line.is_empty() {
            if let Some(data) = data.take() {
                let name = if name.is_empty() { b"message".to_vec() } else { name.clone() };
                events.push((text(&name), text(&data), text(&id)));
            }
            name.clear();
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                data = Some(match data {
                    Some(before) => [&before, &b"\n"[..], value].concat(),
                    None => value.to_vec(),
                });
            }
            b"event" => name = value.to_vec(),
            b"id" if !value.contains(&0) && value.len() <= ID_LEN_MAX => id = value.to_vec(),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                retry = text(value).parse().ok().or(retry);
            }
            _ => {}
        }
    }
    (events, retry)
}

/// The lines, the last of which has no end.
fn lines(stream: &[u8]) -> Vec<&[u8]> {
    let (mut lines, mut rest) = (Vec::new(), stream);
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        lines.push(&rest[..end]);
        let is_pair = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + 1 + usize::from(is_pair)..];
    }
    lines.push(rest);
    lines
}
