//! What a server answers, on whatever a fuzzer sends: the same however its bytes are cut, and no more of it than there is.

use super::framing::Framing;
use super::head;

/// The first byte is the length of the pieces; the rest is a response.
pub(crate) fn response(input: &[u8]) {
    let Some((piece_len, response)) = input.split_first() else { return };
    let whole = read(response, response.len());
    let in_pieces = read(response, usize::from(*piece_len));
    assert_eq!(whole, in_pieces);
}

/// The status, the body as far as it could be read, and how much is left behind its end if it has one.
type Read = Option<(u16, Vec<u8>, Result<Option<usize>, ()>)>;

fn read(response: &[u8], piece_len: usize) -> Read {
    let (mut reading, mut rest) = (response, Vec::new());
    let head = futures_util::FutureExt::now_or_never(head::read(&mut reading, &mut rest));
    // Of what is in memory there is nothing to wait for.
    let head = head?.ok()?;
    let status = head.status.as_u16();
    rest.extend_from_slice(reading);
    assert!(response.ends_with(&rest));
    let Ok(mut framing) = Framing::of(&head) else { return Some((status, Vec::new(), Err(()))) };
    let (mut body, mut passed) = (Vec::new(), 0);
    for piece in rest.chunks(piece_len.max(1)) {
        match framing.read(piece, |data| body.extend_from_slice(data)) {
            Ok(len) => passed += len,
            Err(_) => return Some((status, body, Err(()))),
        }
    }
    assert!(body.len() <= passed && passed <= rest.len());
    let left = (framing == Framing::Over).then(|| rest.len() - passed);
    Some((status, body, Ok(left)))
}
