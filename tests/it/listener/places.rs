//! Who takes all the places there are.

use super::*;

#[tokio::test]
async fn one_connection_too_many_is_told_to_come_back() {
    let provider = Provider::start().await;
    let here = Here::start(&provider, Limits { connections: 8, ..FAR }).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut socket = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        until(&mut socket, "ok\n").await;
        held.push(socket);
    }
    let refused = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = until_closed(refused).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("retry-after: 5"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["code"], "overloaded");

    drop(held.pop());
    let since = Instant::now();
    loop {
        let again =
            here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        if until_closed(again).await.starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "no place is given back");
    }
    here.finish().await;
}

#[tokio::test]
async fn where_places_are_short_nobody_keeps_one_for_nothing() {
    let provider = Provider::start().await;
    let limits = Limits { connections: 8, idle_when_short: SOON, ..FAR };
    let here = Here::start(&provider, limits).await;
    let mut few = Vec::new();
    for _ in 0..4 {
        few.push(here.connect().await);
    }
    sleep(4 * SOON).await;
    for socket in &few {
        let read = socket.try_read(&mut [0; 1]);
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    let more = [here.connect().await, here.connect().await, here.connect().await];
    let closed: Vec<_> = few.into_iter().chain(more).map(until_closed).collect();
    let (first, _, _) = futures_util::future::select_all(closed.into_iter().map(Box::pin)).await;
    assert_eq!(first, "");
    here.finish().await;
}

#[tokio::test]
async fn whoever_comes_when_all_places_are_taken_gets_that_of_one_who_asks_for_nothing() {
    let provider = Provider::start().await;
    let gate = Gate::new();
    provider.once(Script::new().token("Once").gate(&gate).token(" upon").finish("stop").done());
    let limits = Limits { connections: 8, idle_when_full: SOON, ..FAR };
    let here = Here::start(&provider, limits).await;
    let user = here.user().await;
    let mut reading = user.stream(json!({"input": "Go."})).await;
    reading.until("token").await;
    let beginnings: [&[u8]; 4] = [b"", b"GET /healthz HTTP/1.1\r\nx-slow: ", PREFACE, b"P"];
    let mut silent = Vec::new();
    for at in 0..7 {
        silent.push(here.sent(beginnings[at % 4]).await);
    }
    let since = Instant::now();
    // More than there are places, one after the other, which all stay.
    let mut served = 0;
    while served < 12 {
        let mut socket = here.sent(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = vec![0; 12];
        // One too many may be closed without a word.
        if socket.read_exact(&mut answer).await.is_ok() && answer == b"HTTP/1.1 200" {
            served += 1;
            silent.push(socket);
        }
        assert!(since.elapsed() < PATIENCE, "{served} got a place");
    }
    gate.open();
    reading.done().await;
    assert_eq!(reading.text(), "Once upon");
    here.finish().await;
}

#[tokio::test]
async fn a_flood_of_streams_that_are_reset_at_once_harms_nobody() {
    let provider = Provider::start().await;
    provider.once(Script::telling(&["fine"]));
    let relay = TestRelay::with(&provider)
        .env("RELAY_LOG", "warn,storytellr_relay::cli=info")
        .start()
        .await;
    let user = relay.user().await;
    let address = relay.url("").replace("http://", "");
    let headers = frame(1, 5, b"\x82\x86\x84\x41\x01x");
    let mut flood = [PREFACE, EMPTY_SETTINGS].concat();
    for stream in 0..50_000_u32 {
        let id = (2 * stream + 1).to_be_bytes();
        for mut frame in [headers.clone(), frame(3, 0, &8_u32.to_be_bytes())] {
            frame[5..9].copy_from_slice(&id);
            flood.extend_from_slice(&frame);
        }
    }
    let floods = (0..4).map(|_| {
        let (address, flood) = (address.clone(), flood.clone());
        tokio::spawn(async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            // The relay closes it in the middle.
            drop(socket.write_all(&flood).await);
            until_closed(socket).await;
        })
    });
    let floods = tokio::spawn(join_all(floods));
    user.stream(json!({"input": "Go."})).await.done().await;
    for flood in timeout(PATIENCE, floods).await.expect("a flood goes on").unwrap() {
        flood.unwrap();
    }
    Answer::of(relay.client().get(relay.url("/healthz")).send().await.unwrap()).await.ok(200);
    relay.finish().await;
}

#[tokio::test]
async fn without_file_descriptors_the_relay_waits_and_says_so_once() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    user.get("/v1/bots").await.ok(200);
    let pid = relay.pid().to_string();
    let prlimit = std::process::Command::new("prlimit")
        .args(["--pid", &pid, "--nofile=64:64"])
        .status()
        .unwrap();
    assert!(prlimit.success());
    let address = relay.url("").replace("http://", "");
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(&address).await.unwrap());
    }
    let failing = |log: &str| log.matches("accepting connections fails").count();
    let since = Instant::now();
    while failing(&relay.log()) == 0 {
        assert!(since.elapsed() < PATIENCE, "{}", relay.log());
        sleep(Duration::from_millis(20)).await;
    }
    // It fails ten times a second.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(failing(&relay.log()), 1);
    drop(sockets);
    user.get("/v1/bots").await.ok(200);
    relay.finish().await;
}
