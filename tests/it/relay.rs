//! The relay under test, and the users who call it.
//!
//! A test starts a relay, lets users do things, and ends with [`TestRelay::finish`], which fails if a generation still
//! runs, if a variant was left unfinished, if the log has an error or a secret, or if the process does not end well. A
//! relay that is dropped without that fails the test too.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderMap, Method};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use storytellr_relay::auth::{Issuers, Principal, SharedSecret, Verifier};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::client::Reading;
use crate::provider::{PATIENCE, Provider};

pub(crate) const SECRET: &str = "a-secret-of-the-tests-with-at-least-32-characters";
pub(crate) const ISSUER: &str = "https://project.supabase.co/auth/v1";

/// Is in every secret and every text that must never be in a log: the harness looks for it in each.
pub(crate) const CANARY: &str = "canary";

/// The operator's key of the provider `scripted`; it must never be seen anywhere but there.
pub(crate) const PROVIDER_KEY: &str = "sk-canary-5d0c0a6a1f2a4a11";

/// Begins every key that a user of the tests gives the relay: none of it is ever in the log or in a file, in whatever form.
pub(crate) const OWN_KEY: &str = "sk-canary-own-";

/// What the relay's users' keys are sealed with.
pub(crate) const MASTER_KEY: &str = "first:Y2FuYXJ5LW9mLWEtbWFzdGVyLWtleS1mb3ItdGVzdHM=";

const BINARY: &str = env!("CARGO_BIN_EXE_storytellr-relay");

pub(crate) struct Builder {
    command: &'static str,
    env: Vec<(String, String)>,
}

impl Builder {
    /// Sets a variable; a later one of the same name wins.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        set(&mut self.env, name, value.into());
        self
    }

    /// What it is started as, instead of `serve`.
    pub(crate) fn command(mut self, command: &'static str) -> Self {
        self.command = command;
        self
    }

    pub(crate) async fn start(self) -> TestRelay {
        let data = TempDir::new().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (process, address) = spawn(self.command, &self.env, &data, &log).await;
        let shared = Arc::new(Shared {
            address: Mutex::new(address),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            users: Mutex::default(),
        });
        let Self { command, env } = self;
        TestRelay { process, command, data, env, log, began_at: 0, shared, is_finished: false }
    }
}

pub(crate) struct TestRelay {
    process: Process,
    command: &'static str,
    data: TempDir,
    env: Vec<(String, String)>,
    log: Arc<Mutex<String>>,
    /// Where the log of the present process begins.
    began_at: usize,
    shared: Arc<Shared>,
    is_finished: bool,
}

struct Shared {
    address: Mutex<String>,
    client: reqwest::Client,
    users: Mutex<Vec<Uuid>>,
}

impl TestRelay {
    /// A relay whose provider `scripted` is `provider`, with limits that tests do not reach.
    pub(crate) fn with(provider: &Provider) -> Builder {
        Builder { command: "serve", env: Vec::new() }
            .env("RELAY_LISTEN", "127.0.0.1:0")
            .env("RELAY_LOG", "debug")
            .env("RELAY_RATE_LIMIT", "1000000/min")
            .env("RELAY_MAX_STREAMS_PER_USER", "10000")
            .env("SUPABASE_JWT_SECRET", SECRET)
            .env("RELAY_JWT_ISSUERS", ISSUER)
            .env("RELAY_PROVIDERS", format!("scripted={}", provider.base_url()))
            .env("SCRIPTED_API_KEY", PROVIDER_KEY)
            .env("RELAY_MASTER_KEYS", MASTER_KEY)
    }

    /// A new user without anything.
    pub(crate) fn stranger(&self) -> User {
        self.user_of(Uuid::now_v7())
    }

    /// A new user who signed in without any credential.
    pub(crate) fn anonymous(&self) -> User {
        let user = self.stranger();
        let mut claims = claims(user.id);
        claims["is_anonymous"] = true.into();
        User { token: token(&claims), ..user }
    }

    /// A new user with a bot at the provider `scripted`.
    pub(crate) async fn user(&self) -> User {
        let user = self.stranger();
        user.bot(json!({})).await;
        user
    }

    /// A user of another relay, at this one.
    pub(crate) fn same(&self, user: &User) -> User {
        User { shared: Arc::clone(&self.shared), ..user.clone() }
    }

    /// Returns when the relay's log has those words.
    pub(crate) async fn logs(&self, words: &str) {
        let since = Instant::now();
        while !self.log().contains(words) {
            assert!(since.elapsed() < PATIENCE, "never logged: {words}\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns when the relay says that it is ready and reaches others.
    pub(crate) async fn is_in_touch(&self) {
        self.says("\"redis\":\"up\"").await;
    }

    /// Returns when `/readyz` says that.
    pub(crate) async fn says(&self, word: &str) {
        let since = Instant::now();
        loop {
            let said = self.client().get(self.url("/readyz")).send().await.unwrap();
            let said = said.text().await.unwrap();
            if said.contains(word) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{said}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn user_of(&self, id: Uuid) -> User {
        self.shared.users.lock().unwrap().push(id);
        User { id, token: token(&claims(id)), shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.shared.address.lock().unwrap())
    }

    pub(crate) fn client(&self) -> &reqwest::Client {
        &self.shared.client
    }

    /// The folder of its data.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Runs another command of the binary with the same settings, which must succeed; what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// As [`Self::run`], but it must fail; what it said of that.
    pub(crate) fn run_in_vain(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    fn output(&self, arguments: &[&str]) -> std::process::Output {
        std::process::Command::new(BINARY)
            .args(arguments)
            .env_clear()
            .env("RELAY_DATA", self.data.path())
            .envs(self.env.iter().cloned())
            .output()
            .unwrap()
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id().expect("the relay has ended")
    }

    /// Asks the process to end, without waiting.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Waits until the process has ended by itself, well.
    pub(crate) async fn ended(&mut self) {
        let status = self.exited().await;
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.child.id().expect("the relay has ended").to_string();
        let kill = std::process::Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// Ends the process as `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        self.process.child.kill().await.unwrap();
    }

    /// Starts again on the same data.
    pub(crate) async fn start_again(&mut self) {
        let (process, address) = spawn(self.command, &self.env, &self.data, &self.log).await;
        self.process = process;
        *self.shared.address.lock().unwrap() = address;
    }

    /// Changes a setting for the next start.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        set(&mut self.env, name, value.to_owned());
    }

    /// Starts again on the same data, as an argument of the command `under`. Whether it came up; it has ended otherwise.
    pub(crate) async fn start_under(&mut self, under: &[String]) -> bool {
        self.began_at = self.log.lock().unwrap().len();
        let (process, address) = launch(under, self.command, &self.env, &self.data, &self.log);
        self.process = process;
        let address = timeout(PATIENCE, address).await.expect("the relay neither starts nor ends");
        let Ok(address) = address else { return false };
        *self.shared.address.lock().unwrap() = address;
        true
    }

    /// Starts again on the same data, and kills it so much later, wherever it is then.
    pub(crate) async fn start_and_kill(&mut self, later: Duration) {
        (self.process, _) = launch(&[], self.command, &self.env, &self.data, &self.log);
        sleep(later).await;
        self.kill().await;
    }

    /// Waits until the process has ended, however it does, and the log has all that it said.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        let status = timeout(PATIENCE, self.process.child.wait()).await;
        let status = status.expect("the relay does not end").unwrap();
        if let Some(listening) = self.process.listening.take() {
            timeout(PATIENCE, listening).await.expect("somebody else has the relay's log").unwrap();
        }
        status
    }

    /// Waits until the process has ended because it could not go on, and returns what it told the operator last. It was
    /// started by [`Self::start_under`].
    pub(crate) async fn failed(&mut self) -> String {
        assert_eq!(self.exited().await.code(), Some(1), "{}", self.log());
        let log = self.log();
        let last = log[self.began_at..].lines().last();
        let words = last.and_then(|last| last.strip_prefix("storytellr-relay: "));
        words.unwrap_or_else(|| panic!("{log}")).to_owned()
    }

    pub(crate) async fn restart(&mut self) {
        self.terminate();
        self.ended().await;
        self.start_again().await;
    }

    /// The end of every test.
    pub(crate) async fn finish(self) {
        let users: Vec<_> = self.shared.users.lock().unwrap().clone();
        for id in users {
            self.user_of(id).is_at_rest().await;
        }
        self.finish_without_users().await;
    }

    /// The end of a test whose users cannot be asked whether they are at rest.
    pub(crate) async fn finish_without_users(self) {
        assert!(!self.log().contains("\"level\":\"ERROR\""), "{}", self.log());
        self.finish_with_errors().await;
    }

    /// The end of a test in which something went wrong that an operator has to know.
    pub(crate) async fn finish_with_errors(mut self) {
        self.is_finished = true;
        self.terminate();
        self.ended().await;
        let log = self.log();
        assert!(!log.contains("panicked"), "{log}");
        let (_, master_key) = MASTER_KEY.split_once(':').unwrap();
        for secret in [CANARY, SECRET, master_key, "eyJ"] {
            assert!(!log.contains(secret), "a secret in the log: {log}");
        }
        for file in std::fs::read_dir(self.data.path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            for secret in [PROVIDER_KEY, OWN_KEY] {
                let is_there = memchr::memmem::find(&bytes, secret.as_bytes()).is_some();
                assert!(!is_there, "a key in {}", path.display());
            }
        }
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        // Best effort: it may have ended.
        let _killed = self.process.child.start_kill();
        if std::thread::panicking() {
            eprintln!("the relay's log:\n{}", self.log());
        } else {
            assert!(self.is_finished, "a test must end with `finish`");
        }
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    env.retain(|(known, _)| known != name);
    env.push((name.to_owned(), value));
}

/// A process that was started.
struct Process {
    child: Child,
    /// Ends when all that it said is in the log.
    listening: Option<JoinHandle<()>>,
}

/// Starts the command of the binary as an argument of `under`, which is nothing or another command. What it tells goes to
/// `log`. The address is the one that it will listen on, unless it ends before.
fn launch(
    under: &[String],
    command: &str,
    env: &[(String, String)],
    data: &TempDir,
    log: &Arc<Mutex<String>>,
) -> (Process, oneshot::Receiver<String>) {
    let mut words = under.iter().map(String::as_str).chain([BINARY, command]);
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .env_clear()
        .env("RELAY_DATA", data.path())
        .envs(env.iter().cloned())
        .stdin(Stdio::null())
        // What `dev` says to people.
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (announce, address) = oneshot::channel();
    let (log, mut announce) = (Arc::clone(log), Some(announce));
    let listening = tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            log.lock().unwrap().push_str(&format!("{line}\n"));
            let record: Value = serde_json::from_str(&line).unwrap_or_default();
            if record["message"] == "listening"
                && let (Some(address), Some(announce)) = (record["addr"].as_str(), announce.take())
            {
                // A test that kills the relay while it starts does not wait for it.
                let _sent = announce.send(address.to_owned());
            }
        }
    });
    (Process { child, listening: Some(listening) }, address)
}

async fn spawn(
    command: &str,
    env: &[(String, String)],
    data: &TempDir,
    log: &Arc<Mutex<String>>,
) -> (Process, String) {
    let (process, address) = launch(&[], command, env, data, log);
    let address = timeout(PATIENCE, address).await.expect("the relay does not start");
    // Copied first: whoever cleans up behind a panic looks at the log, too.
    let said = log.lock().unwrap().clone();
    (process, address.unwrap_or_else(|_| panic!("the relay does not start:\n{said}")))
}

/// Whether that is for good what `message-by-stream-id` says of a stream: the database has it so, or there is no text to have.
pub(crate) fn is_settled(stream: &Value) -> bool {
    let is_lost = stream["status"] == "interrupted"
        && stream["content"] == ""
        && stream["reasoning"] == ""
        && stream.get("saved").is_none();
    is_lost || stream["saved"] == true
}

/// The claims of a signed-in user, as Supabase Auth sets them.
pub(crate) fn claims(user: Uuid) -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({
        "iss": ISSUER, "sub": user, "aud": "authenticated", "role": "authenticated",
        "iat": now, "exp": now + 3600, "email": "", "is_anonymous": false,
    })
}

pub(crate) fn token(claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes()))
        .unwrap()
}

/// A caller, for tests that call the library.
pub(crate) fn principal(user: Uuid) -> Principal {
    let verifier = Verifier::new(SharedSecret::new(SECRET).as_ref(), None, Issuers::Any);
    let token = token(&claims(user));
    // A shared secret is there, so nothing is waited for.
    let verified = verifier.verify(&token, storytellr_relay::clock::now()).now_or_never();
    verified.unwrap().unwrap()
}

/// Somebody who calls the relay.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) id: Uuid,
    pub(crate) token: String,
    shared: Arc<Shared>,
}

/// What the relay answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, headers, json }
    }

    /// The answer's JSON, which must have that status.
    #[track_caller]
    pub(crate) fn ok(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.json);
        self.json
    }

    /// It must be an error of that status and code, with a message for people and the request's id.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> &str {
        let error = &self.json["error"];
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{}", self.json);
        assert_eq!(error["request_id"].as_str(), self.headers["x-request-id"].to_str().ok());
        let message = error["message"].as_str().unwrap();
        assert!(message.len() > 10 && message.ends_with('.'), "{message}");
        message
    }
}

impl User {
    /// A new user of a relay that a test has started in its own process.
    pub(crate) fn of_relay_at(address: SocketAddr, client: reqwest::Client) -> Self {
        let id = Uuid::now_v7();
        let shared =
            Shared { address: Mutex::new(address.to_string()), client, users: Mutex::default() };
        Self { id, token: token(&claims(id)), shared: Arc::new(shared) }
    }

    /// The same user on another connection.
    pub(crate) fn elsewhere(&self) -> Self {
        let address = self.shared.address.lock().unwrap().parse().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let other = Self::of_relay_at(address, client);
        Self { id: self.id, token: self.token.clone(), ..other }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.shared.address.lock().unwrap());
        self.shared.client.request(method, url).bearer_auth(&self.token)
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(method, path).body(body.to_string()).send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// A new bot at the provider `scripted`, with those settings different; its id.
    pub(crate) async fn bot(&self, settings: Value) -> i64 {
        let mut bot = json!({"name": "Narrator", "provider": "scripted", "model": "model-1"});
        bot.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        self.post("/v1/bots", &bot).await.ok(201)["id"].as_i64().unwrap()
    }

    /// A new conversation; its id.
    pub(crate) async fn conversation(&self) -> i64 {
        self.post("/v1/conversations", &json!({})).await.ok(201)["id"].as_i64().unwrap()
    }

    /// Starts a stream, which must begin.
    pub(crate) async fn stream(&self, body: Value) -> Reading {
        self.reading(self.request(Method::POST, "/v1/stream").body(body.to_string())).await
    }

    /// Says something in a conversation.
    pub(crate) async fn say(&self, conversation: i64, input: &str) -> Reading {
        self.stream(json!({"conversation_id": conversation, "input": input})).await
    }

    /// Says something, and reads the answer to its end, which must be good.
    pub(crate) async fn told(&self, conversation: i64, input: &str) -> Value {
        self.say(conversation, input).await.done().await
    }

    pub(crate) async fn reroll(&self, body: Value) -> Reading {
        self.reading(self.request(Method::POST, "/v1/reroll").body(body.to_string())).await
    }

    pub(crate) async fn follow(&self, stream_id: &str, after: Option<u64>) -> Reading {
        let query = after.map(|after| format!("?after={after}")).unwrap_or_default();
        self.reading(self.request(Method::GET, &format!("/v1/streams/{stream_id}{query}"))).await
    }

    pub(crate) async fn reading(&self, request: reqwest::RequestBuilder) -> Reading {
        let response = request.send().await.unwrap();
        if response.status() != 200 {
            panic!("no stream: {:?}", Answer::of(response).await);
        }
        Reading::new(response)
    }

    /// Asks again and again until a stream begins, and must be refused like that until then.
    pub(crate) async fn begins(
        &self,
        request: reqwest::RequestBuilder,
        (status, code): (u16, &str),
    ) -> Reading {
        let since = Instant::now();
        loop {
            let response = request.try_clone().unwrap().send().await.unwrap();
            if response.status() == 200 {
                return Reading::new(response);
            }
            Answer::of(response).await.refused(status, code);
            assert!(since.elapsed() < PATIENCE, "it never begins, because of `{code}`");
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn tree(&self, conversation: i64) -> Value {
        self.get(&format!("/v1/conversations/{conversation}")).await.ok(200)
    }

    /// The message of a tree.
    pub(crate) async fn message(&self, conversation: i64, id: &Value) -> Value {
        let tree = self.tree(conversation).await;
        let message =
            tree["messages"].as_array().unwrap().iter().find(|message| &message["id"] == id);
        message.cloned().unwrap_or(Value::Null)
    }

    /// The story as it reads now: the active texts of the path.
    pub(crate) async fn story(&self, conversation: i64) -> Vec<String> {
        let tree = self.tree(conversation).await;
        let messages = tree["messages"].as_array().unwrap();
        let find = |id: &Value| messages.iter().find(|message| &message["id"] == id).unwrap();
        let active = |message: &Value| {
            let variants = message["variants"].as_array().unwrap().iter();
            let mut active =
                variants.filter(|variant| variant["id"] == message["active_variant_id"]);
            active
                .next()
                .map_or_else(String::new, |variant| variant["content"].as_str().unwrap().to_owned())
        };
        tree["path"].as_array().unwrap().iter().map(|id| active(find(id))).collect()
    }

    /// What is saved of a stream, once it is in that state, in the database.
    pub(crate) async fn saved(&self, stream_id: &str, status: &str) -> Value {
        let since = Instant::now();
        loop {
            let answer = self.get(&format!("/v1/message-by-stream-id?stream_id={stream_id}")).await;
            if answer.json["status"] == status && is_settled(&answer.json) {
                return answer.json;
            }
            assert!(since.elapsed() < PATIENCE, "never {status}: {:?}", answer.json);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails unless nothing of the user's is being written.
    async fn is_at_rest(&self) {
        let since = Instant::now();
        while self.get("/v1/streams").await.ok(200)["data"] != json!([]) {
            assert!(since.elapsed() < PATIENCE, "a generation was left running");
            sleep(Duration::from_millis(20)).await;
        }
        let conversations = self.get("/v1/conversations?limit=200").await.ok(200);
        for conversation in conversations["data"].as_array().unwrap() {
            let id = conversation["id"].as_i64().unwrap();
            while self.tree(id).await.to_string().contains("\"status\":\"streaming\"") {
                let tree = self.tree(id).await;
                assert!(since.elapsed() < PATIENCE, "a variant was left unfinished: {tree}");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
