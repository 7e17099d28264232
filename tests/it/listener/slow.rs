//! Who is silent, or sends byte by byte or for ever.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::*;

#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { idle: SOON, ..FAR }).await;
    let connections = [
        here.connect().await,
        here.sent(b"P").await,
        here.sent(&PREFACE[..20]).await,
        here.sent(b"GET /healthz HT").await,
        here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await,
        here.sent(PREFACE).await,
        here.sent(&[PREFACE, EMPTY_SETTINGS].concat()).await,
    ];
    for answer in join_all(connections.map(until_closed)).await {
        assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    }
    let mut kept = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    until(&mut kept, "ok\n").await;
    assert_eq!(until_closed(kept).await, "");
    here.finish().await;
}

#[tokio::test]
async fn headers_that_come_byte_by_byte_come_too_slowly() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { idle: SOON, ..FAR }).await;
    let (mut reader, mut writer) = here.connect().await.into_split();
    let sent = async {
        writer.write_all(b"GET /healthz HTTP/1.1\r\n").await?;
        loop {
            writer.write_all(b"x: y\r\n").await?;
            sleep(SOON / 10).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        sent = sent => { let _broken: Result<(), std::io::Error> = sent; }
        read = timeout(PATIENCE, reader.read_to_end(&mut answer)) => drop(read.unwrap()),
    }
    assert_eq!(answer, b"");
    here.finish().await;
}

#[tokio::test]
async fn a_client_is_understood_however_its_first_bytes_come() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, FAR).await;
    let user = here.user().await;
    let posted = post(&user, 0).into_bytes();
    let preface = [PREFACE, EMPTY_SETTINGS].concat();
    for (sent, answer) in [(&posted, &b"HTTP/1.1 "[..]), (&preface, b"\0\0")] {
        for cut in [1, 2, 10] {
            let mut socket = here.sent(&sent[..cut]).await;
            sleep(SOON / 10).await;
            socket.write_all(&sent[cut..]).await.unwrap();
            let mut bytes = vec![0; answer.len()];
            let read = timeout(PATIENCE, socket.read_exact(&mut bytes)).await;
            read.expect("there is no answer").unwrap();
            assert_eq!(bytes, answer, "cut at {cut}");
        }
    }
    here.finish().await;
}

/// A body of a bit over that length.
fn padded(len: usize) -> String {
    json!({"input": "Go.", "padding": "x".repeat(len)}).to_string()
}

#[tokio::test]
async fn a_body_that_comes_byte_by_byte_comes_too_slowly() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { body: SOON, ..FAR }).await;
    let user = here.user().await;
    let (mut reader, mut writer) = here.sent(post(&user, 100_000).as_bytes()).await.into_split();
    let dripping = tokio::spawn(async move {
        while writer.write_all(b" ").await.is_ok() {
            sleep(SOON / 10).await;
        }
    });
    let mut answer = Vec::new();
    // It is closed with something unread in it, so it may be reset behind its answer.
    let _ended =
        timeout(PATIENCE, reader.read_to_end(&mut answer)).await.expect("it is not closed");
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    dripping.await.unwrap();
    assert!(provider.requests().is_empty());
    here.finish().await;
}

/// A body that is never ready twice in a row.
struct Pieces {
    left: Vec<u8>,
    is_ready: bool,
}

impl http_body::Body for Pieces {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>> {
        self.is_ready = !self.is_ready;
        if self.is_ready {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let len = self.left.len().min(7);
        let piece = bytes::Bytes::from_iter(self.left.drain(..len));
        Poll::Ready((len > 0).then(|| Ok(http_body::Frame::data(piece))))
    }
}

#[tokio::test]
async fn a_body_in_many_pieces_is_read_to_its_end() {
    for client in [reqwest::Client::builder(), reqwest::Client::builder().http2_prior_knowledge()] {
        let provider = Provider::start().await;
        provider.once(Script::telling(&["fine"]));
        let here = Here::start(&provider, FAR).await;
        let user = here.user_with(client).await;
        let pieces = Pieces { left: padded(100_000).into(), is_ready: false };
        let sent =
            user.request(Method::POST, "/v1/stream").body(reqwest::Body::wrap(pieces)).send();
        let answer = timeout(PATIENCE, sent).await.expect("it is not read").unwrap();
        assert_eq!(answer.status(), 200);
        let text = timeout(PATIENCE, answer.text()).await.unwrap().unwrap();
        assert!(text.contains("event: done"), "{text}");
        here.finish().await;
    }
}

#[tokio::test]
async fn a_long_body_that_keeps_coming_earns_its_time() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["fine"]));
    let here = Here::start(&provider, Limits { body: SOON, ..FAR }).await;
    let user = here.user().await;
    let body = padded(1 << 20);
    let mut socket = here.sent(post(&user, body.len()).as_bytes()).await;
    let (first, last) = body.as_bytes().split_at(body.len() - 1);
    socket.write_all(first).await.unwrap();
    // By now it has earned sixteen seconds.
    sleep(4 * SOON).await;
    socket.write_all(last).await.unwrap();
    until(&mut socket, "event: ").await;
    here.finish().await;
}

#[tokio::test]
async fn bodies_that_find_no_room_are_told_to_come_back() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["fine"]));
    let here = Here::start(&provider, Limits { bodies_len: 1 << 20, ..FAR }).await;
    let user = here.user().await;
    let mut slow = here.sent(post(&user, 700 << 10).as_bytes()).await;
    slow.write_all(&vec![b' '; 600 << 10]).await.unwrap();
    // So much is left of it that it finds no room for its last bytes.
    let body = padded(430 << 10);
    let send = || user.request(Method::POST, "/v1/stream").body(body.clone()).send();
    let since = Instant::now();
    // What is sent first need not have come first.
    let refused = loop {
        let response = send().await.unwrap();
        if response.status() != 200 {
            break Answer::of(response).await;
        }
        assert!(since.elapsed() < PATIENCE, "there is room for everything");
    };
    refused.refused(503, "overloaded");
    assert_eq!(refused.headers["retry-after"], "5");
    drop(slow);
    while send().await.unwrap().status() != 200 {
        assert!(since.elapsed() < PATIENCE, "no room is given back");
    }
    here.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_whether_it_is_there_is_closed() {
    let provider = Provider::start().await;
    provider.always(Script::new().repeat(b": still there\n\n", SOON / 10));
    let here = Here::start(&provider, Limits { idle: SOON, ..FAR }).await;
    let user = here.user().await;
    // A request that is answered for minutes, in literal headers without an index, and then not a word.
    let mut headers = Vec::new();
    let token = format!("Bearer {}", user.token);
    let body = json!({"input": "Go."}).to_string();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v1/stream"),
        (":authority", "x"),
        ("authorization", token.as_str()),
    ] {
        headers.push(0);
        headers.push(u8::try_from(name.len()).unwrap());
        headers.extend_from_slice(name.as_bytes());
        headers.extend_from_slice(&string_len(value.len()));
        headers.extend_from_slice(value.as_bytes());
    }
    let request = [PREFACE, EMPTY_SETTINGS, &frame(1, 4, &headers), &frame(0, 1, body.as_bytes())];
    let socket = here.sent(&request.concat()).await;
    assert!(until_closed(socket).await.contains("event: start"));
    here.finish().await;
}

/// The length of a string, as RFC 7541 section 5.1 has it.
fn string_len(len: usize) -> Vec<u8> {
    let Some(mut rest) = len.checked_sub(127) else { return vec![u8::try_from(len).unwrap()] };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, FAR).await;
    let many = "x: y\r\n".repeat(65);
    let long = format!("x: {}\r\n", "y".repeat(40 << 10));
    for headers in [many, long] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let answer = until_closed(here.sent(request.as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    here.finish().await;
}
