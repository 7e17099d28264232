//! Servers of all manners, over real sockets.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nHello\r\n0\r\n\r\n";

/// What a server does on one connection: answers each request with the next of those texts and closes it after the last, or
/// keeps it open.
struct Manner {
    answers: &'static [&'static str],
    stays: bool,
    /// Answers what it has not read.
    is_hasty: bool,
}

const POLITE: Manner =
    Manner { answers: &[CHUNKED, CHUNKED, CHUNKED], stays: true, is_hasty: false };

/// A server that treats one connection after another in that manner, where it is, and the requests that it has read.
async fn server(manners: Vec<Manner>) -> (Url, mpsc::Receiver<String>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/x", listener.local_addr().unwrap()).parse().unwrap();
    let (sender, requests) = mpsc::channel(16);
    let mut task = JoinSet::new();
    task.spawn(async move {
        'connections: for manner in manners {
            let (mut socket, _) = listener.accept().await.unwrap();
            for answer in manner.answers {
                let mut request = Vec::new();
                while !manner.is_hasty && !request.ends_with(b"end") {
                    if socket.read_buf(&mut request).await.unwrap() == 0 {
                        continue 'connections;
                    }
                }
                sender.send(String::from_utf8(request).unwrap()).await.unwrap();
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            if manner.stays {
                sender.send("kept".to_owned()).await.unwrap();
                // Until the client closes it.
                while socket.read_u8().await.is_ok() {}
            }
        }
    });
    (url, requests, task)
}

async fn post(client: &Cleartext, url: &Url, body: &str) -> Result<(Head, Body), Fault> {
    let headers =
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("Bearer key"))]);
    client.post(url, &headers, &Bytes::copy_from_slice(body.as_bytes())).await
}

/// The whole body, or as much as came and why no more did.
async fn text(mut body: Body) -> (String, Option<String>) {
    let mut bytes = Vec::new();
    let fault = loop {
        match body.read(|data| bytes.extend_from_slice(data)).await {
            Ok(true) => {}
            Ok(false) => break None,
            Err(fault) => break Some(fault.to_string()),
        }
    };
    (String::from_utf8(bytes).unwrap(), fault)
}

fn client() -> Cleartext {
    Cleartext::new(Duration::from_secs(5))
}

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let (url, mut requests, _task) = server(vec![POLITE]).await;
    let client = client();
    for _ in 0..3 {
        let (head, body) = post(&client, &url, "the end").await.unwrap();
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(text(body).await, ("Hello".to_owned(), None));
        let request = requests.recv().await.unwrap();
        let (host, port) = (url.host_str().unwrap(), url.port().unwrap());
        let expected = format!(
            "POST /v1/x HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: 7\r\nauthorization: Bearer key\r\n\r\nthe end"
        );
        assert_eq!(request, expected);
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_or_is_half_read_is_not_used_again() {
    let once = || Manner { answers: &[CHUNKED], stays: false, is_hasty: false };
    let (url, mut requests, _task) = server(vec![once(), once(), POLITE, POLITE]).await;
    let client = client();
    for _ in 0..2 {
        let (_, body) = post(&client, &url, "end").await.unwrap();
        assert_eq!(text(body).await.0, "Hello");
        requests.recv().await.unwrap();
        // The server closes it now; until that has come it looks like one that is there.
        let closed = async {
            let place = url.origin().ascii_serialization();
            while let Some(socket) = client.pool.take(&place) {
                Idle { pool: Arc::clone(&client.pool), place: place.clone() }.put(socket);
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), closed).await.unwrap();
    }
    let (_, body) = post(&client, &url, "end").await.unwrap();
    drop(body);
    assert!(client.pool.take(&url.origin().ascii_serialization()).is_none());
    let (_, body) = post(&client, &url, "end").await.unwrap();
    assert_eq!(text(body).await.0, "Hello");
}

/// What is behind a body would be read for the head of somebody else's.
#[tokio::test]
async fn a_connection_of_which_nobody_knows_where_it_stands_is_not_used_again() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nHello!",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nHello\r\n0\r\n\r\n!",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n!",
        "HTTP/1.1 204 No Content\r\n\r\n!",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: Close\r\n\r\nHello",
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nHello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let manner = Manner { answers: Vec::leak(vec![answer]), stays: true, is_hasty: false };
        let (url, _requests, _task) = server(vec![manner]).await;
        let client = client();
        let (_, body) = post(&client, &url, "end").await.unwrap();
        assert_eq!(text(body).await.1, None, "{answer}");
        let waiting = client.pool.take(&url.origin().ascii_serialization());
        assert!(waiting.is_none(), "{answer}");
    }
}

#[tokio::test]
async fn bodies_end_where_their_heads_say() {
    for (answer, expected, fault) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello", "Hello", None),
        ("HTTP/1.1 200 OK\r\n\r\nHello", "Hello", None),
        ("HTTP/1.0 200 OK\r\n\r\nHello", "Hello", None),
        (
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nHello",
            "Hello",
            None,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nHello", "Hello", Some("broke off")),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nHello\r\n",
            "Hello",
            Some("broke off"),
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nHello?",
            "Hello",
            Some("chunk"),
        ),
    ] {
        let manner = Manner { answers: Vec::leak(vec![answer]), stays: false, is_hasty: false };
        let (url, _requests, _task) = server(vec![manner]).await;
        let (_, body) = post(&client(), &url, "end").await.unwrap();
        let (text, why) = text(body).await;
        assert_eq!(text, expected, "{answer}");
        let is_expected = match (fault, &why) {
            (None, None) => true,
            (Some(word), Some(why)) => why.contains(word),
            _ => false,
        };
        assert!(is_expected, "{answer}: {why:?}");
    }
}

#[tokio::test]
async fn what_is_no_response_is_a_fault() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(70_000));
    for (answer, word) in [
        ("", "broke off"),
        ("HTTP/1.1 200 OK\r\n", "broke off"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "cannot be read"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "length"),
        ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nx", "length"),
        ("HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\nx", "length"),
        ("HTTP/1.1 200 OK\r\ncontent-length: +0\r\n\r\n", "length"),
        ("HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n", "length"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "coding"),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "coding"),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "response"),
        (&*long, "too long"),
    ] {
        let manner = Manner {
            answers: Vec::leak(vec![&*answer.to_owned().leak()]),
            stays: false,
            is_hasty: false,
        };
        let (url, _requests, _task) = server(vec![manner]).await;
        let fault = post(&client(), &url, "end").await.err().unwrap().to_string();
        assert!(fault.contains(word), "{answer:.80}: {fault}");
    }
}

#[tokio::test]
async fn who_refuses_a_request_need_not_read_it() {
    let refusal = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";
    let hasty = Manner { answers: Vec::leak(vec![refusal]), stays: true, is_hasty: true };
    let (url, _requests, _task) = server(vec![hasty, POLITE]).await;
    let client = client();
    let (head, body) = post(&client, &url, &"x".repeat(32 << 20)).await.unwrap();
    assert_eq!(head.status, StatusCode::PAYLOAD_TOO_LARGE);
    drop(body);
    assert!(client.pool.take(&url.origin().ascii_serialization()).is_none());
}

#[tokio::test]
async fn nobody_there_is_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let fault = post(&client(), &url, "end").await.err().unwrap();
    assert!(matches!(fault, Fault::NotConnected(_)), "{fault}");
}
