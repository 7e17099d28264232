//! Event streams, and who reads nothing of them.

use tokio::io::Interest;
use tokio::net::TcpSocket;

use super::*;

#[tokio::test]
async fn a_stream_that_is_merely_silent_goes_on() {
    let limits = Limits { idle: SOON, unread: SOON, body: SOON, ..FAR };
    for client in [reqwest::Client::builder(), reqwest::Client::builder().http2_prior_knowledge()] {
        let provider = Provider::start().await;
        let gate = Gate::new();
        provider.once(Script::new().token("Once").gate(&gate).token(" upon").finish("stop").done());
        let here = Here::start(&provider, limits).await;
        let user = here.user_with(client).await;
        let mut reading = user.stream(json!({"input": "Go."})).await;
        reading.until("token").await;
        sleep(4 * SOON).await;
        gate.open();
        reading.done().await;
        assert_eq!(reading.text(), "Once upon");
        here.finish().await;
    }
}

#[tokio::test]
async fn an_event_stream_is_the_last_answer_of_its_connection() {
    let provider = Provider::start().await;
    provider.always(Script::telling(&["Once", " upon"]));
    let here = Here::start(&provider, FAR).await;
    let user = here.user().await;
    let body = json!({"input": "Go.", "stream_id": "told"}).to_string();
    let mut requests = format!("{}{body}", post(&user, body.len())).into_bytes();
    requests.extend(get(&user, "/healthz"));
    let answer = until_closed(here.sent(&requests).await).await;
    let (head, events) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for field in [
        "content-type: text/event-stream",
        "x-stream-id: told",
        "transfer-encoding: chunked",
        "connection: close",
    ] {
        assert!(head.lines().any(|line| line == field), "{field}: {head}");
    }
    let date = head.lines().find_map(|line| line.strip_prefix("date: ")).expect("no date");
    assert!(date.ends_with(" GMT"), "{date}");
    assert!(events.contains("event: done\n"), "{events}");
    assert!(events.ends_with("\r\n0\r\n\r\n"), "{events}");
    assert!(!events.contains("HTTP/1.1"), "what came behind the request was not asked: {events}");

    // What hyper goes on writing itself: no chunks for who knows of none, and no body where none was asked for.
    let token = &user.token;
    let fields = format!("host: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n");
    let old = format!("GET /v1/streams/told HTTP/1.0\r\n{fields}");
    let answer = until_closed(here.sent(old.as_bytes()).await).await;
    assert!(answer.contains("event: done\n") && answer.ends_with("\n\n"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
    let head = format!("HEAD /v1/streams/told HTTP/1.1\r\n{fields}");
    let answer = until_closed(here.sent(head.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(!answer.contains("event: "), "{answer}");
    here.finish().await;
}

/// What is unread when a socket is closed resets the connection, and a reset can take the end of the stream with it.
#[tokio::test]
async fn a_client_that_says_more_gets_the_end_of_its_stream_all_the_same() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.always(Script::new().token("Once").gate(&gate).finish("stop").done());
    let here = Here::start(&provider, FAR).await;
    let user = here.user().await;
    let body = json!({"input": "Go."}).to_string();
    let mut socket = here.sent(format!("{}{body}", post(&user, body.len())).as_bytes()).await;
    until(&mut socket, "Once").await;
    socket.write_all(&get(&user, "/healthz")).await.unwrap();
    gate.open();
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("it is not closed");
    read.expect("the connection was reset");
    assert!(String::from_utf8_lossy(&rest).ends_with("\r\n0\r\n\r\n"));
    here.finish().await;
}

/// A reader on HTTP/1 that asks for a stream and reads nothing, ever.
async fn reads_nothing(address: SocketAddr, user: &User, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    socket.write_all(&get(user, path)).await.unwrap();
    socket
}

/// Returns when the relay has broken the connection off, without reading anything of it.
async fn dropped(socket: &TcpStream) {
    timeout(Duration::from_secs(60), socket.ready(Interest::ERROR))
        .await
        .expect("the reader is not dropped")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_reads_nothing_is_dropped_and_changes_nothing_else() {
    let provider = Provider::start().await;
    let text = long_text();
    let gate = Gate::new();
    let (first, last) = text.split_at(text.len() - 10);
    provider.once(chunks(first).gate(&gate).token(last).finish("stop").done());
    let here = Here::start(&provider, Limits { unread: A_WHILE, ..FAR }).await;
    let user = here.user().await;
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "stream_id": "long"});
    let mut other = user.stream(body).await;
    let stuck = reads_nothing(here.address, &user, "/v1/streams/long").await;
    let other = tokio::spawn(async move {
        other.done().await;
        other
    });
    dropped(&stuck).await;

    gate.open();
    let other = other.await.unwrap();
    assert!(other.text() == text, "another reader has all of it");
    let mut back = user.follow("long", other.seen[1].id).await;
    back.done().await;
    assert!(other.seen[1].data.clone() + &back.text() == text, "it can come back and go on");
    here.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_one_stream_of_a_connection_that_reads_nothing_is_dropped_alone() {
    let provider = Provider::start().await;
    let text = long_text();
    provider.once(chunks(&text).finish("stop").done());
    let gate = Gate::new();
    provider.once(Script::new().token("Once").gate(&gate).token(" upon").finish("stop").done());
    let here = Here::start(&provider, Limits { unread: A_WHILE, ..FAR }).await;
    // One connection; what is not read of a stream holds back that stream alone.
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .http2_initial_stream_window_size(64 << 10)
        .http2_initial_connection_window_size(16 << 20);
    let user = here.user_with(client).await;
    let long = json!({"input": "Go.", "stream_id": "long"}).to_string();
    let request = user.request(Method::POST, "/v1/stream").body(long);
    let mut stuck = request.send().await.unwrap();
    provider.asked(1).await;
    let mut other = user.stream(json!({"input": "Go."})).await;
    other.until("token").await;
    // Another connection reads all of it meanwhile: from then on the first reader is behind.
    let mut quick = user.elsewhere().follow("long", None).await;
    quick.done().await;
    assert!(quick.text() == text);
    sleep(2 * A_WHILE).await;

    let mut read = 0;
    let is_broken = loop {
        match timeout(PATIENCE, stuck.chunk()).await.expect("it is not dropped") {
            Ok(Some(bytes)) => read += bytes.len(),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(is_broken && read < text.len(), "{read} bytes were read of the stream");
    gate.open();
    other.done().await;
    assert_eq!(other.text(), "Once upon");
    here.finish().await;
}

/// The process's memory in KiB, of a field of its status.
fn memory(relay: &TestRelay, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_piles_up_for_readers_that_read_nothing_is_bounded_and_comes_back() {
    const READERS: u64 = 1_000;
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let provider = Provider::start().await;
    let text = long_text();
    provider.once(chunks(&text).finish("stop").done());
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.user().await;
    let story = user.conversation().await;
    let body = json!({"conversation_id": story, "input": "Go.", "stream_id": "long"});
    user.stream(body).await.done().await;
    let address: SocketAddr = relay.url("").replace("http://", "").parse().unwrap();
    let before = memory(&relay, "VmRSS:");
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(reads_nothing(address, &user, "/v1/streams/long").await);
    }
    let since = Instant::now();
    join_all(readers.iter().map(dropped)).await;
    assert!(since.elapsed() >= Duration::from_secs(25), "it is told from one who reads slowly");
    let most = memory(&relay, "VmHWM:");
    assert!(most < before + READERS * 256, "from {before} to {most} KiB");
    let since = Instant::now();
    while memory(&relay, "VmRSS:") > before + READERS * 32 {
        let kept = memory(&relay, "VmRSS:");
        assert!(since.elapsed() < 4 * PATIENCE, "from {before} to {most}, and {kept} KiB are kept");
        sleep(Duration::from_millis(100)).await;
    }
    let mut back = user.follow("long", None).await;
    back.done().await;
    assert!(back.text() == text);
    relay.finish().await;
}
