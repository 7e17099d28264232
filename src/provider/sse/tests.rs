//! The decoder against the vectors of web-platform-tests (`eventsource/format-*`), against LaunchDarkly's contract tests
//! for SSE clients, and against itself with the bytes cut in any way.

use proptest::prelude::*;

use super::*;

/// Name, data and id of each event.
type Events = Vec<(String, String, String)>;

fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Events, Option<u64>) {
    let mut decoder = Decoder::new();
    let mut events = Vec::new();
    for piece in pieces {
        decoder
            .push(piece, |event| {
                events.push((
                    event.name.into_owned(),
                    event.data.into_owned(),
                    event.id.into_owned(),
                ));
            })
            .unwrap();
    }
    (events, decoder.retry_ms())
}

fn decode(bytes: &[u8]) -> (Events, Option<u64>) {
    decode_pieces([bytes])
}

/// The data of all events must be `expected`, with the bytes whole and cut into pieces of 1, 2, 3, 5 and 7 bytes.
#[track_caller]
fn check(bytes: &[u8], expected: &[&str]) {
    for size in [bytes.len().max(1), 1, 2, 3, 5, 7] {
        let (events, _) = decode_pieces(bytes.chunks(size));
        let data: Vec<_> = events.iter().map(|(_, data, _)| data.as_str()).collect();
        assert_eq!(data, expected, "in pieces of {size}");
    }
}

#[test]
fn wpt_bom() {
    check(b"\xEF\xBB\xBFdata:1\n\n\xEF\xBB\xBFdata:2\n\ndata:3\n\n", &["1", "3"]);
}

#[test]
fn wpt_bom_2() {
    check(b"\xEF\xBB\xBF\xEF\xBB\xBFdata:1\n\ndata:2\n\ndata:3\n\n", &["2", "3"]);
}

#[test]
fn what_begins_like_a_byte_order_mark_is_a_line() {
    check(b"\xEF\xBBdata:1\n\ndata:2\n\n", &["2"]);
    check(b"\xEF\n\ndata:2\n\n", &["2"]);
}

#[test]
fn wpt_newlines() {
    check(b"data:test\r\ndata\ndata:test\r\n\r", &["test\n\ntest"]);
    check(b"data:test\r\ndata\ndata:test\r\n\r\n", &["test\n\ntest"]);
}

#[test]
fn wpt_field_parsing() {
    check(
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
        &["\0\n 2\n1\n3\n\n4"],
    );
}

#[test]
fn wpt_comments() {
    let long = "x".repeat(2048);
    check(
        format!("data:1\r:\0\n:\r\ndata:2\n:{long}\rdata:3\n:data:fail\r:{long}\ndata:4\n\n")
            .as_bytes(),
        &["1\n2\n3\n4"],
    );
}

#[test]
fn wpt_field_data() {
    check(b"data:\n\ndata\ndata\n\ndata:test\n\n", &["", "\n", "test"]);
}

#[test]
fn wpt_leading_space() {
    check(b"data:\ttest\rdata: \ndata:test\n\n", &["\ttest\n\ntest"]);
}

#[test]
fn wpt_field_unknown() {
    check(
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        &["test\n\ntest"],
    );
}

#[test]
fn wpt_null_character_and_utf_8() {
    check(b"data:\0\n\n", &["\0"]);
    check("data:ok…\n\n".as_bytes(), &["ok…"]);
    check(b"data:a\xFFb\xF0\x9F\n\n", &["a\u{FFFD}b\u{FFFD}"]);
}

#[test]
fn wpt_field_event() {
    let (events, _) = decode(b"event: \ndata:data\n\nevent:test\ndata:x\n\ndata:x\n\n");
    let names: Vec<_> = events.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["message", "test", "message"]);
}

#[test]
fn a_name_without_data_names_no_later_event() {
    let (events, _) = decode(b"event:test\n\ndata:x\n\n");
    assert_eq!(events[0].0, "message");
}

#[test]
fn wpt_field_id() {
    let ids = |bytes: &[u8]| decode(bytes).0.into_iter().map(|(_, _, id)| id).collect::<Vec<_>>();
    assert_eq!(
        ids(b"id: 1\ndata:a\n\ndata:b\n\nid\ndata:c\n\nid:2\n\ndata:d\n\n"),
        ["1", "1", "", "2"]
    );
    for bad in [&b"\0\0"[..], b"x\0", b"\0x", b"x\0x", b" \0"] {
        assert_eq!(ids(&[b"id:1\ndata:a\n\nid:", bad, b"\ndata:b\n\n"].concat()), ["1", "1"]);
    }
}

#[test]
fn wpt_field_retry() {
    let retry = |bytes: &[u8]| decode(bytes).1;
    assert_eq!(retry(b"retry:3000\nretry:1000x\ndata:x\n\n"), Some(3000));
    for bad in [
        &b"retry\n"[..],
        b"retry:+5\n",
        b"retry:  5\n",
        b"retry:-1\n",
        b"retry:99999999999999999999\n",
    ] {
        assert_eq!(retry(bad), None);
    }
}

#[test]
fn wpt_data_before_final_empty_line() {
    check(b"retry:1000\ndata:test1\n\nid:test\ndata:test2", &["test1"]);
    check(b"data:test1\n\ndata:test2\n", &["test1"]);
}

#[test]
fn blank_lines_alone_are_no_events() {
    check(b"\n\n\r\r\r\n:keep-alive\n\n", &[]);
}

#[test]
fn lines_and_events_have_limits() {
    let push = |decoder: &mut Decoder, bytes: &[u8]| decoder.push(bytes, |_| {});
    let longest = [b"data:".as_slice(), &vec![b'x'; LINE_LEN_MAX - 5]].concat();

    let mut decoder = Decoder::new();
    assert_eq!(push(&mut decoder, &longest), Ok(()));
    assert_eq!(push(&mut decoder, b"\n\n"), Ok(()));
    assert_eq!(push(&mut decoder, &longest), Ok(()));
    assert_eq!(push(&mut decoder, b"x"), Err(Oversized::Line));

    let whole = [&longest[..], b"x\n"].concat();
    assert_eq!(push(&mut Decoder::new(), &whole), Err(Oversized::Line));

    let mut decoder = Decoder::new();
    let line = [&longest[..], b"\n"].concat();
    let pushed: Vec<_> = (0..5).map(|_| push(&mut decoder, &line)).collect();
    assert_eq!(pushed, [Ok(()), Ok(()), Ok(()), Ok(()), Err(Oversized::Data)]);
}

/// Streams made of what matters to the grammar, so that cuts fall between the interesting bytes.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"data:".to_vec()),
        Just(b"data: ".to_vec()),
        Just(b"event:".to_vec()),
        Just(b"id: 7".to_vec()),
        Just(b":".to_vec()),
        Just(BYTE_ORDER_MARK.to_vec()),
        Just("🦊".as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_events(bytes in stream(), cuts in proptest::collection::vec(0usize..200, 0..20)) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&bytes[from..cut]);
            from = cut;
        }
        pieces.push(&bytes[from..]);
        prop_assert_eq!(decode_pieces(pieces), decode(&bytes));
    }
}
