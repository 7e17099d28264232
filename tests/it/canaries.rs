//! A storm of requests that are broken off anywhere, by tenants who each have a canary in everything that is theirs: no
//! tenant has a canary of somebody else's, and no line of log has any.
//!
//! `RELAY_TEST_CANCELLED=10000` sends so many, instead of some hundred.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::postgrest::Postgrest;
use crate::provider::{PATIENCE, Provider, Request, Script};
use crate::redis::Pair;
use crate::relay::{Answer, CANARY, TestRelay, User};

const TENANTS: usize = 8;

/// Whatever the libraries have to say, too; but for one that speaks of nothing but wake-ups.
const EVERYTHING: &str = "trace,mio=warn";

/// Requests at once.
const AT_ONCE: usize = 32;

/// When a request is broken off at the latest. Nearly all answers end before, so there are many that leave much earlier.
const LEAVES_WITHIN: Duration = Duration::from_millis(1_500);

fn requests() -> usize {
    let requests = std::env::var("RELAY_TEST_CANCELLED").ok();
    requests.and_then(|requests| requests.parse().ok()).unwrap_or(600)
}

/// What is of that tenant and of nobody else.
fn canary(tenant: usize, of: &str) -> String {
    format!("{CANARY}-{tenant:02}-{of}")
}

/// A tenant's key, which has nothing in common with the words of any: a provider's answer is cleared of what looks like the
/// key, and must be kept out of the log for what else is in it.
fn key_of(tenant: usize) -> String {
    format!("sk-{KEY_MARK}{tenant:02}-{}", "warbler".repeat(3))
}

const KEY_MARK: &str = "warbler-";

/// Whose canaries the text has in it.
fn tenants_in(text: &str) -> Vec<usize> {
    let words = format!("{CANARY}-");
    let marks = text.split(&words).skip(1).chain(text.split(KEY_MARK).skip(1));
    let mut tenants: Vec<_> = marks.filter_map(|rest| rest.get(..2)?.parse().ok()).collect();
    tenants.sort_unstable();
    tenants.dedup();
    tenants
}

/// A provider's answer to whoever asks: mostly a story, and otherwise all that it knows, in whatever way it can be said.
fn answer(request: &Request, leaks: &Mutex<Vec<String>>) -> Script {
    let said = format!("{}\n{}", request.head, request.body);
    let tenants = tenants_in(&said);
    let [tenant] = tenants.as_slice() else {
        leaks.lock().unwrap().push(format!("asked by {tenants:?}: {said}"));
        return Script::answer(400, "").end();
    };
    let echo = json!({"error": {"message": said, "code": said, "type": said}});
    match fastrand::usize(..24) {
        0 => Script::answer(400, "content-type: application/json\r\n")
            .raw(echo.to_string().as_bytes())
            .end(),
        1 => Script::answer(401, "").raw(said.as_bytes()).end(),
        2 => Script::answer(200, "content-type: text/html\r\n").raw(said.as_bytes()).end(),
        3 => Script::new().token(&canary(*tenant, "half")).chunk(&echo).end(),
        4 => Script::new().raw(format!("data: {said:?}\n\n").as_bytes()).end(),
        5 => Script::new().token(&canary(*tenant, "half")).raw(b"data: {\"choices\": ").reset(),
        6 => Script::new().chunk(&json!({"choices": said})).end(),
        7 => Script::new().reasoning(&canary(*tenant, "thought")).stall(),
        _ => {
            let story = (0..8).fold(Script::new(), |script, _| {
                script.token(&canary(*tenant, "answer ")).pause(Duration::from_millis(3))
            });
            story.finish("stop").done()
        }
    }
}

/// Somebody who says nothing without leaving a mark in it.
struct Tenant {
    number: usize,
    user: User,
    /// Every other one speaks HTTP/2.
    client: reqwest::Client,
    url: String,
    bot: i64,
    stories: Vec<i64>,
}

impl Tenant {
    async fn new(relay: &TestRelay, number: usize) -> Self {
        let user = relay.stranger();
        let mark = |of: &str| canary(number, of);
        let key = json!({"provider": "scripted", "key": key_of(number)});
        user.post("/v1/keys", &key).await.ok(201);
        let bot = user.bot(json!({"name": mark("bot"), "system_prompt": mark("system-prompt"), "show_reasoning": true})).await;
        let mut stories = Vec::new();
        for _ in 0..4 {
            let title = json!({"title": mark("title"), "bot_id": bot});
            stories
                .push(user.post("/v1/conversations", &title).await.ok(201)["id"].as_i64().unwrap());
        }
        let client = reqwest::Client::builder().no_proxy();
        let client = if number.is_multiple_of(2) { client } else { client.http2_prior_knowledge() };
        let (client, url) = (client.build().unwrap(), relay.url(""));
        Self { number, user, client, url, bot, stories }
    }

    fn mark(&self, of: &str) -> String {
        canary(self.number, of)
    }

    /// One request out of all that there are, also of those that are refused, with marks wherever a mark can be.
    fn request(&self, random: &mut fastrand::Rng, streams: &[String]) -> reqwest::RequestBuilder {
        let story = self.stories[random.usize(..self.stories.len())];
        let stream_id = random.choice(streams).cloned().unwrap_or_else(|| self.mark("stream"));
        let said = self.mark("input");
        let (method, path, body) = match random.usize(..20) {
            0..7 => (
                Method::POST,
                "/v1/stream".to_owned(),
                json!({"conversation_id": story, "input": said, "system": self.mark("system")}),
            ),
            7 => (
                Method::POST,
                "/v1/stream".to_owned(),
                json!({"messages": [{"role": "user", "content": said}], "bot_id": self.bot}),
            ),
            8 => (
                Method::POST,
                "/v1/stream".to_owned(),
                json!({"conversation_id": said, "input": [said]}),
            ),
            9 => (
                Method::POST,
                "/v1/reroll".to_owned(),
                json!({"message_id": format!("temp-stream-{stream_id}"), "conversation_id": story, "guidance": said}),
            ),
            10 | 11 => (Method::GET, format!("/v1/streams/{stream_id}"), Value::Null),
            12 => (Method::DELETE, format!("/v1/streams/{stream_id}"), Value::Null),
            13 => (Method::GET, format!("/v1/conversations/{story}"), Value::Null),
            14 => (
                Method::GET,
                format!("/v1/message-by-stream-id?stream_id={stream_id}&x={said}"),
                Value::Null,
            ),
            15 => (Method::GET, "/v1/bots".to_owned(), Value::Null),
            16 => (Method::GET, "/v1/keys".to_owned(), Value::Null),
            17 => (
                Method::POST,
                "/v1/keys".to_owned(),
                json!({"provider": "scripted", "key": format!("sk-{}", self.mark("key"))}),
            ),
            18 => (
                Method::POST,
                "/v1/keys".to_owned(),
                json!({"provider": self.mark("provider"), "key": [self.mark("key")]}),
            ),
            _ => (Method::POST, format!("/v1/{}", self.mark("route")), json!(said)),
        };
        let request = self
            .client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.user.token)
            .header("x-request-id", "storm")
            .header("x-mark", self.mark("header"));
        if body.is_null() { request } else { request.body(body.to_string()) }
    }
}

/// Sends it and reads what comes, until the moment to leave. What was read, headers too, and the stream that it was.
async fn broken_off(
    request: reqwest::RequestBuilder,
    leaves_after: Duration,
) -> (String, Option<String>) {
    let mut read = Vec::new();
    let mut stream_id = None;
    let reading = async {
        let mut response = request.send().await.ok()?;
        read.extend_from_slice(format!("{:?}", response.headers()).as_bytes());
        stream_id = response
            .headers()
            .get("x-stream-id")
            .and_then(|id| id.to_str().ok())
            .map(str::to_owned);
        while let Some(bytes) = response.chunk().await.ok()? {
            read.extend_from_slice(&bytes);
        }
        Some(())
    };
    // Whether it came to its end or not is up to the moment.
    let _ended = timeout(leaves_after, reading).await;
    (String::from_utf8_lossy(&read).into_owned(), stream_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_broken_requests_carries_no_canary_to_another_cage() {
    let provider = Provider::start().await;
    let leaks = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&leaks);
    provider.answers(move |request| answer(request, &seen));
    let relay = TestRelay::with(&provider)
        .env("RELAY_LOG", EVERYTHING)
        .env("RELAY_DETACHED_GRACE", "1s")
        .env("RELAY_FIRST_TOKEN_TIMEOUT", "1s")
        .env("RELAY_IDLE_TIMEOUT", "1s")
        .start()
        .await;
    let mut tenants = Vec::new();
    for number in 0..TENANTS {
        tenants.push((Tenant::new(&relay, number).await, Mutex::new(Vec::new())));
    }
    let tenants = Arc::new(tenants);
    let storm = stream::iter(0..requests()).map(|at| {
        let tenants = Arc::clone(&tenants);
        async move {
            let mut random = fastrand::Rng::with_seed(at as u64);
            let (tenant, streams) = &tenants[random.usize(..TENANTS)];
            let request = tenant.request(&mut random, &streams.lock().unwrap());
            // One in three stays to the end, so that there is something to be seen however busy the machine is.
            let leaves_after = match at % 3 {
                0 => PATIENCE,
                _ => LEAVES_WITHIN.mul_f64(random.f64().powi(4)),
            };
            let (read, stream_id) = broken_off(request, leaves_after).await;
            streams.lock().unwrap().extend(stream_id);
            assert!(
                tenants_in(&read).iter().all(|other| *other == tenant.number),
                "{}: {read}",
                tenant.number
            );
            assert!(!read.contains(KEY_MARK) && !read.contains("eyJ"), "{read}");
            !read.is_empty()
        }
    });
    let answered = storm
        .buffer_unordered(AT_ONCE)
        .filter(|answered| std::future::ready(*answered))
        .count()
        .await;
    assert!(answered >= requests() / 3, "{answered}: hardly anybody saw anything");
    assert!(provider.requests().len() > requests() / 20, "hardly anything was asked");
    assert_eq!(*leaks.lock().unwrap(), Vec::<String>::new());

    // What is saved in the end, too.
    for (tenant, _) in tenants.iter() {
        for story in &tenant.stories {
            let tree = tenant.user.tree(*story).await.to_string();
            assert_eq!(tenants_in(&tree), [tenant.number], "{tree}");
        }
    }
    let log = relay.log();
    assert!(log.contains("\"level\":\"TRACE\""), "nothing was there to be seen");
    assert!(
        !log.contains(KEY_MARK),
        "{}",
        log.lines().find(|line| line.contains(KEY_MARK)).unwrap()
    );
    relay.finish().await;
}

/// All that is said to a database and to Redis, by libraries that say at `trace` what they do.
async fn a_story_is_told(provider: &Provider, user: &User, bot: i64) -> String {
    let mark = |of: &str| canary(3, of);
    provider.always(Script::telling(&[&mark("answer"), &mark("more")]));
    let key = json!({"provider": "scripted", "key": key_of(3)});
    user.post("/v1/keys", &key).await.ok(201);
    let title = json!({"title": mark("title"), "bot_id": bot});
    let story = user.post("/v1/conversations", &title).await.ok(201)["id"].as_i64().unwrap();
    let mut reading = user.say(story, &mark("input")).await;
    let done = reading.done().await;
    let reroll = json!({"message_id": done["message_id"], "guidance": mark("guidance")});
    user.reroll(reroll).await.done().await;
    let path = format!("/v1/messages/{}/variants", done["message_id"]);
    user.post(&path, &json!({"content": mark("by hand")})).await.ok(201);
    user.patch(&format!("/v1/bots/{bot}"), &json!({"system_prompt": mark("prompt")})).await.ok(200);
    assert_eq!(tenants_in(&user.tree(story).await.to_string()), [3]);
    reading.stream_id()
}

#[tokio::test]
async fn what_is_said_to_postgres_and_to_redis_is_said_to_nobody_else() {
    let provider = Provider::start().await;
    let pair = Pair::start_with(&provider, |builder| builder.env("RELAY_LOG", EVERYTHING)).await;
    let bot = pair.user.bot(json!({"name": canary(3, "bot")})).await;
    let stream_id = a_story_is_told(&provider, &pair.user, bot).await;
    let mut elsewhere = pair.away.follow(&stream_id, None).await;
    elsewhere.done().await;
    assert_eq!(tenants_in(&elsewhere.text()), [3]);
    assert!(pair.first.log().contains("tokio_postgres"), "nothing was there to be seen");
    pair.finish().await;
}

#[tokio::test]
async fn what_is_said_to_postgrest_is_said_to_nobody_else() {
    let provider = Provider::start().await;
    let url = format!("http://127.0.0.1:{}", Postgrest::shared().await);
    let relay = TestRelay::with(&provider)
        .env("SUPABASE_REST_URL", url)
        .env("RELAY_LOG", EVERYTHING)
        .start()
        .await;
    let user = relay.stranger();
    let bot = user.bot(json!({"name": canary(3, "bot")})).await;
    a_story_is_told(&provider, &user, bot).await;
    assert!(relay.log().contains("hyper_util::client"), "nothing was there to be seen");
    relay.finish().await;
}

/// A refusal names what is wrong with a request and says nothing of what is in it, to the log least of all.
#[tokio::test]
async fn what_is_refused_is_not_quoted() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).env("RELAY_LOG", EVERYTHING).start().await;
    let user = relay.user().await;
    let mark = canary(7, "secret");
    for body in [
        mark.clone(),
        format!("\"{mark}\""),
        format!("{{\"input\": {mark}}}"),
        format!("{{\"input\": \"{mark}\", \"input\": \"{mark}\"}}"),
        json!({"input": [mark]}).to_string(),
        json!({"messages": mark}).to_string(),
        json!({"messages": [{"role": mark, "content": mark}]}).to_string(),
        json!({"messages": [{"role": "user", "content": [{"type": mark}]}]}).to_string(),
        json!({"stream_id": mark.repeat(20), "input": mark}).to_string(),
        json!({"conversation_id": mark, "input": mark}).to_string(),
        json!({"input": mark, "temperature": mark}).to_string(),
    ] {
        let request =
            user.request(Method::POST, &format!("/v1/stream?x={mark}")).body(body.clone());
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(!answer.json.to_string().contains(CANARY), "{answer:?}");
    }
    for token in [&mark, &format!("{mark}.{mark}.{mark}")] {
        let request = relay.client().get(relay.url(&format!("/v1/bots/{mark}"))).bearer_auth(token);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert!(!answer.json.to_string().contains(CANARY), "{answer:?}");
        answer.refused(401, "invalid_token");
    }
    relay.finish().await;
}
