//! When a set is fetched, and what is known meanwhile: with a source that says what it is told to, and time that passes only
//! when nothing else is to be done.

use std::collections::VecDeque;
use std::future::pending;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::advance;

use super::*;

/// What a fetch brings; `None` does not end.
type Answer = Option<Result<Value, &'static str>>;

#[derive(Debug, Default)]
struct Scripted {
    fetched: Mutex<Vec<Instant>>,
    /// What comes next. The last stays.
    answers: Mutex<VecDeque<Answer>>,
}

#[async_trait::async_trait]
impl Source for Arc<Scripted> {
    async fn fetch(&self) -> Result<Vec<u8>, String> {
        self.fetched.lock().unwrap().push(Instant::now());
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
        };
        match answer {
            Some(answer) => Ok(answer?.to_string().into_bytes()),
            None => pending().await,
        }
    }
}

/// A key set that nobody keeps fresh.
pub(super) fn fetched_from(answers: impl IntoIterator<Item = Answer>) -> KeySet {
    let source = Arc::new(Scripted::default());
    source.answers.lock().unwrap().extend(answers);
    KeySet::of("https://project.supabase.co/keys".parse().unwrap(), Box::new(source))
}

/// A key set that is kept fresh, and its source.
struct Kept {
    set: Arc<KeySet>,
    source: Arc<Scripted>,
    began: Instant,
    _keeper: JoinSet<()>,
}

impl Kept {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let source = Arc::new(Scripted::default());
        source.answers.lock().unwrap().extend(answers);
        let url = "https://project.supabase.co/keys".parse().unwrap();
        let set = Arc::new(KeySet::of(url, Box::new(Arc::clone(&source))));
        let mut keeper = JoinSet::new();
        keeper.spawn(Arc::clone(&set).keep_fresh());
        Self { set, source, began: Instant::now(), _keeper: keeper }
    }

    /// When it was fetched, in seconds from the beginning.
    fn fetched(&self) -> Vec<f64> {
        let fetched = self.source.fetched.lock().unwrap();
        fetched.iter().map(|at| (*at - self.began).as_secs_f64()).collect()
    }

    /// Whether the key is known when a token asks for it, and how many seconds that takes.
    async fn asks(&self, kid: &str) -> (bool, f64) {
        let asked = Instant::now();
        let keys = self.set.keys_for(kid).await;
        (keys.contains_key(kid), asked.elapsed().as_secs_f64())
    }
}

/// A set of keys of those names, and one that is none.
#[expect(clippy::unnecessary_wraps, reason = "it is what a fetch brings")]
fn set(kids: &[&str]) -> Answer {
    let key = |kid: &&str| json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let mut keys: Vec<_> = kids.iter().map(key).collect();
    keys.push(json!({"kty": "OKP", "crv": "Ed25519", "kid": "none", "x": ""}));
    Some(Ok(json!({"keys": keys})))
}

/// Lets so much time pass, and all happen that happens in it.
async fn pass(seconds: f64) {
    sleep(Duration::from_secs_f64(seconds)).await;
    // The others whose time has come at this moment.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_is_fetched_every_ten_minutes() {
    let kept = Kept::new([set(&["a"])]);
    assert!(!kept.set.has_set());
    pass(1_300.0).await;
    assert_eq!(kept.fetched(), [0.0, 600.0, 1200.0]);
    assert!(kept.set.has_set());
    assert_eq!(kept.asks("a").await, (true, 0.0));
    assert_eq!(kept.fetched().len(), 3, "who is known is waited for by nobody");
}

#[tokio::test(start_paused = true)]
async fn until_there_is_one_it_is_asked_for_every_second_and_then_the_old_one_stays() {
    let down = || Some(Err("down"));
    let kept = Kept::new([down(), down(), set(&["a"]), down()]);
    // The first fetch is waited for, and no other.
    assert_eq!(kept.asks("a").await, (false, 0.0));
    assert!(!kept.set.has_set());
    pass(700.0).await;
    assert_eq!(kept.fetched(), [0.0, 1.0, 2.0, 602.0]);
    assert_eq!(kept.asks("a").await, (true, 0.0));
    assert!(kept.set.has_set());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_known_is_asked_for_once_in_half_a_minute() {
    let kept = Kept::new([set(&["a"]), set(&["a", "b"]), set(&["c"])]);
    pass(100.0).await;
    assert_eq!(kept.asks("b").await, (true, 0.0));
    assert_eq!(kept.fetched(), [0.0, 100.0]);
    pass(1.0).await;
    assert_eq!(kept.asks("c").await, (false, 0.0), "who comes too soon is judged by what is known");
    pass(28.5).await;
    assert_eq!(kept.asks("c").await, (false, 0.0));
    assert_eq!(kept.fetched(), [0.0, 100.0]);
    pass(0.5).await;
    assert_eq!(kept.asks("c").await, (true, 0.0));
    assert_eq!(kept.fetched(), [0.0, 100.0, 130.0]);
    assert_eq!(kept.asks("a").await, (false, 0.0), "what is gone is gone");
    pass(601.0).await;
    assert_eq!(kept.fetched(), [0.0, 100.0, 130.0, 730.0]);
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_comes_too_soon_is_heard_when_its_time_has_come() {
    let kept = Kept::new([set(&["a"])]);
    pass(1.0).await;
    assert_eq!(kept.asks("b").await, (false, 0.0));
    kept.set.wanted.notify_one();
    pass(29.0).await;
    assert_eq!(kept.fetched(), [0.0, 1.0]);
    pass(2.0).await;
    assert_eq!(kept.fetched(), [0.0, 1.0, 31.0]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_who_ask_at_once_are_one_fetch() {
    let kept = Kept::new([set(&["a"]), set(&["a", "b"])]);
    pass(1.0).await;
    let asked = futures_util::future::join_all((0..100).map(|_| kept.asks("b"))).await;
    assert!(asked.iter().all(|(is_known, _)| *is_known));
    assert_eq!(kept.fetched(), [0.0, 1.0]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_answer_is_waited_for_five_seconds() {
    let kept = Kept::new([None]);
    assert_eq!(kept.asks("a").await, (false, 5.0));
    let kept = Kept::new([set(&["a"]), None]);
    pass(1.0).await;
    assert_eq!(kept.asks("b").await, (false, 5.0));
    assert_eq!(kept.asks("a").await, (true, 0.0));
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_no_set_and_takes_none_away() {
    let nonsense = || Some(Ok(json!([])));
    let kept = Kept::new([set(&["a"]), nonsense()]);
    pass(700.0).await;
    assert_eq!(kept.asks("a").await, (true, 0.0));
    let told = Kept::new([nonsense()]).set.fetch_once().await.unwrap_err();
    assert!(told.starts_with("it is no key set"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn what_is_fetched_once_is_all_there_is() {
    let once = fetched_from([Some(Err("down")), set(&["a", "b"])]);
    assert_eq!(once.url().as_str(), "https://project.supabase.co/keys");
    assert_eq!(once.fetch_once().await.unwrap_err(), "down");
    assert!(!once.has_set());
    assert_eq!(once.fetch_once().await, Ok(2));
    assert!(once.has_set());
    let asked = Instant::now();
    assert!(!once.keys_for("c").await.contains_key("c"));
    assert_eq!(asked.elapsed(), Duration::ZERO, "nobody fetches for it");
    advance(Duration::from_secs(1)).await;
    assert!(once.keys_for("a").await.contains_key("a"));
}

#[test]
fn of_a_key_that_is_passed_over_the_operator_is_told_once() {
    let set = fetched_from([]);
    let reasons = |kids: &[&str]| {
        let answer = self::set(kids).unwrap().unwrap().to_string();
        jwks::parse(answer.as_bytes()).unwrap().passed_over
    };
    let (one, other) = (reasons(&[]), reasons(&["a"]));
    assert_eq!(set.news(one.clone()), one);
    assert_eq!(set.news(one.clone()), []);
    assert_eq!(set.news(other.clone()), other, "it is another key now");
    assert_eq!(set.news(vec![]), []);
    assert_eq!(set.news(other.clone()), other);
}
