//! The guard between a scripted name server and sockets that count who connects.
//!
//! Where nothing is to answer, the clock is the runtime's own, which moves on when all wait: what is told after five
//! seconds is told after exactly those, and a test takes none of them.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use async_trait::async_trait;
use reqwest::dns::Resolve;
use secrecy::SecretString;

use super::super::Request;
use super::super::client::Clients;
use super::super::habits::ORDINARY;
use super::super::openai::{Endpoint, Key, Upstream};
use super::*;

/// Global unicast that IANA has given to nobody: public by its number, and no test bothers anybody.
const PUBLIC: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1));

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a name server does when it is asked.
#[derive(Clone)]
enum Answer {
    Addresses(Vec<IpAddr>),
    NoSuchName,
    /// No such name, and that only after a while.
    Late(Duration),
    Silence,
}

/// A name server that gives its answers one after the other, and the last one for ever.
struct Scripted(Mutex<VecDeque<Answer>>);

impl Scripted {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(answers.into_iter().collect())))
    }

    fn always(addresses: &[IpAddr]) -> Arc<Self> {
        Self::new([Answer::Addresses(addresses.to_vec())])
    }
}

#[async_trait]
impl Lookup for Scripted {
    async fn addresses(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
        let answer = {
            let mut answers = self.0.lock().unwrap();
            if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
        };
        match answer.unwrap() {
            Answer::Addresses(addresses) => Ok(addresses),
            Answer::NoSuchName => Err(io::Error::other("no such name")),
            Answer::Late(after) => {
                sleep(after).await;
                Err(io::Error::other("no such name"))
            }
            Answer::Silence => std::future::pending().await,
        }
    }
}

/// A server on loopback that gives one answer to all who speak HTTP, and remembers who connected.
struct Door {
    port: u16,
    address: IpAddr,
    requests: Receiver<String>,
}

/// What a test says to a door itself, to know that all who came before were counted.
const LAST: &str = "that is all";

impl Door {
    fn open(address: IpAddr, port: u16, answer: &str) -> io::Result<Self> {
        let listener = TcpListener::bind((address, port))?;
        let port = listener.local_addr()?.port();
        let (sender, requests) = channel();
        let answer = format!("HTTP/1.1 {answer}content-length: 0\r\n\r\n");
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut request = [0; 4096];
                let len = socket.read(&mut request).unwrap_or(0);
                let _sent = socket.write_all(answer.as_bytes());
                if sender.send(String::from_utf8_lossy(&request[..len]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { port, address, requests })
    }

    fn on_loopback() -> Self {
        Self::open(LOOPBACK, 0, "200 OK\r\n").unwrap()
    }

    /// What everybody said who has connected so far.
    fn said(&self) -> Vec<String> {
        let mut last = TcpStream::connect((self.address, self.port)).unwrap();
        last.write_all(LAST.as_bytes()).unwrap();
        self.requests.iter().take_while(|request| request != LAST).collect()
    }
}

fn allow(networks: &[&str], hosts: &[&str]) -> UpstreamAllow {
    UpstreamAllow {
        networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
    }
}

fn guard(allow: UpstreamAllow, lookup: Arc<Scripted>) -> Guard {
    Guard::with_lookup(allow, lookup).unwrap()
}

async fn post(guard: &Guard, url: &str) -> Result<Response, Error> {
    guard.post(&guard.parse(url).unwrap(), |call| call).await
}

/// The call must be refused like all others: in words and in time. The operator's reason comes back.
async fn refusal(guard: &Guard, url: &str) -> String {
    let began = Instant::now();
    let error = post(guard, url).await.expect_err(url);
    // A timer of this runtime counts whole milliseconds.
    assert!((5_000..=5_001).contains(&began.elapsed().as_millis()), "{url}: {:?}", began.elapsed());
    assert_eq!((error.code(), error.message()), (Code::UpstreamNotAllowed, refused("").message()));
    error.detail().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn nobody_can_tell_why_there_is_no_answer() {
    let door = Door::on_loopback();
    let closed = TcpListener::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap().port();
    let name = "https://somebody.example/v1";
    for (answer, url, reason) in [
        (Answer::NoSuchName, name.to_owned(), "no such name"),
        (Answer::Silence, name.to_owned(), "timed out"),
        (Answer::Addresses(Vec::new()), name.to_owned(), "no address"),
        (Answer::Addresses(vec![LOOPBACK]), name.to_owned(), "127.0.0.1 is loopback"),
        (Answer::Addresses(vec![PUBLIC]), name.to_owned(), "onnect"),
        (Answer::Silence, "https://10.0.0.1".to_owned(), "10.0.0.1 is private"),
        (Answer::Silence, "https://[2000::1]".to_owned(), "onnect"),
        (Answer::Silence, "http://[2000::1]".to_owned(), "RELAY_UPSTREAM_ALLOW"),
        (Answer::Silence, format!("https://127.0.0.9:{closed}"), "refused"),
        // Somebody is there who does not speak TLS.
        (Answer::Silence, format!("https://127.0.0.9:{}", door.port), "onnect"),
    ] {
        let guard = guard(allow(&["127.0.0.9/32"], &[]), Scripted::new([answer]));
        let logged = refusal(&guard, &url).await;
        assert!(logged.contains(reason), "{url}: {logged}");
    }
}

/// Up to three times, but for tries that might be answered only after the refusal is told.
#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_tried_again_if_there_is_time_for_it() {
    for (lookup_seconds, tries) in [(0.0, 2..=3), (1.4, 1..=1)] {
        let mut answers = vec![Answer::Late(Duration::from_secs_f64(lookup_seconds)); 10];
        answers.push(Answer::NoSuchName);
        let lookup = Scripted::new(answers);
        let guard = guard(UpstreamAllow::default(), Arc::clone(&lookup));
        refusal(&guard, "https://somebody.example/v1").await;
        let made = 11 - lookup.0.lock().unwrap().len();
        assert!(tries.contains(&made), "{made} in {lookup_seconds} s each");
    }
}

#[tokio::test(start_paused = true)]
async fn no_hostile_address_is_connected_to() {
    let door = Door::on_loopback();
    let urls = include_str!("../../../tests/fixtures/hostile_base_urls.json");
    let urls: Vec<String> = serde_json::from_str(urls).unwrap();
    // With http allowed somewhere, so that its form is no reason to refuse a URL.
    let guard = guard(allow(&["192.168.77.0/24"], &[]), Scripted::always(&[LOOPBACK]));
    let mut called = 0;
    for url in urls {
        let url = url.replace("{port}", &door.port.to_string());
        if guard.parse(&url).is_ok() {
            called += 1;
            refusal(&guard, &url).await;
        }
    }
    assert!(called > 100, "{called}");
    assert_eq!(door.said(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_name_with_one_bad_address_is_refused_whatever_the_others_are() {
    let door = Door::on_loopback();
    let mut thousand = vec![PUBLIC; 999];
    thousand.push(LOOPBACK);
    let forms = ["::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1", "fd00:ec2::254"];
    let names = forms.iter().map(|form| vec![PUBLIC, form.parse().unwrap()]);
    for addresses in names.chain([vec![LOOPBACK], vec![PUBLIC, LOOPBACK, PUBLIC], thousand]) {
        let guard = guard(UpstreamAllow::default(), Scripted::always(&addresses));
        let logged = refusal(&guard, &format!("https://a.example:{}", door.port)).await;
        assert!(logged.contains(" is "), "{logged}");
    }
    assert_eq!(door.said(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_changes_its_mind_leads_nowhere() {
    let door = Door::on_loopback();
    for answers in [vec![PUBLIC, LOOPBACK], vec![LOOPBACK, PUBLIC, LOOPBACK]] {
        let changing =
            Scripted::new(answers.iter().map(|address| Answer::Addresses(vec![*address])));
        let guard = guard(UpstreamAllow::default(), Arc::clone(&changing) as Arc<Scripted>);
        for _ in &answers {
            refusal(&guard, &format!("https://a.example:{}", door.port)).await;
        }
        assert_eq!(changing.0.lock().unwrap().len(), 1, "the last answer was not asked for");
    }
    assert_eq!(door.said(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_address_that_was_checked_is_the_one_connected_to() {
    let good: IpAddr = [127, 0, 0, 2].into();
    let (right, wrong) = std::iter::repeat_with(|| Door::open(good, 0, "200 OK\r\n").unwrap())
        .find_map(|right| Some((Door::open(LOOPBACK, right.port, "200 OK\r\n").ok()?, right)))
        .map(|(wrong, right)| (right, wrong))
        .unwrap();
    let changing = [good, LOOPBACK].map(|address| Answer::Addresses(vec![address]));
    let guard = guard(allow(&["127.0.0.2/32"], &[]), Scripted::new(changing));
    refusal(&guard, &format!("https://a.example:{}", right.port)).await;
    assert_eq!((right.said().len(), wrong.said().len()), (1, 0));
}

#[tokio::test]
async fn a_name_with_a_thousand_addresses_is_tried_at_eight() {
    let allow = Arc::new(UpstreamAllow::default());
    let resolver = CheckedResolver { allow, lookup: Scripted::always(&[PUBLIC; 1_000]) };
    let addresses = resolver.resolve("a.example".parse().unwrap()).await;
    assert_eq!(addresses.ok().unwrap().count(), 8);
}

#[tokio::test]
async fn what_the_operator_allows_is_called() {
    let door = Door::on_loopback();
    let by_name = guard(allow(&[], &["llm.example"]), Scripted::always(&[LOOPBACK]));
    let by_address = guard(allow(&["127.0.0.0/8"], &[]), Scripted::new([Answer::Silence]));
    let answered = post(&by_name, &format!("http://LLM.example:{}/v1", door.port)).await;
    assert_eq!(answered.unwrap().status(), 200);
    let answered = post(&by_address, &format!("http://127.0.0.1:{}/v1", door.port)).await;
    assert_eq!(answered.unwrap().status(), 200);
    let said = door.said();
    assert_eq!(said.len(), 2);
    for request in said {
        assert!(
            request.starts_with("POST /v1 ") && request.contains(LOOP_MARK.as_str()),
            "{request}"
        );
    }
}

#[test]
fn an_answer_from_elsewhere_is_not_read() {
    let guard = guard(allow(&["10.0.0.0/8"], &["llm.example"]), Scripted::always(&[PUBLIC]));
    let check = |url: &str, peer: &str| {
        let peer = peer.parse::<IpAddr>().unwrap();
        guard.check_peer(&guard.parse(url).unwrap(), Some(SocketAddr::new(peer, 443))).is_ok()
    };
    assert!(check("https://a.example", "2000::1") && check("https://a.example", "10.0.0.1"));
    assert!(check("https://llm.example", "192.168.0.1") && check("https://10.0.0.1", "10.0.0.1"));
    assert!(!check("https://a.example", "192.168.0.1") && !check("https://10.0.0.1", "127.0.0.1"));
    assert!(guard.check_peer(&guard.parse("https://a.example").unwrap(), None).is_err());
}

#[tokio::test]
async fn redirects_are_not_followed_and_take_no_key_along() {
    let inside = Door::on_loopback();
    let guard = guard(allow(&["127.0.0.0/8"], &[]), Scripted::new([Answer::NoSuchName]));
    let question = Request {
        model: "m".to_owned(),
        messages: Vec::new(),
        max_tokens: None,
        temperature: None,
        reasoning: None,
    };
    for status in [300, 301, 302, 303, 304, 305, 307, 308] {
        let inside = inside.port;
        let location = format!(
            "location: http://127.0.0.1:{inside}/\r\nrefresh: 0; url=http://127.0.0.1:{inside}/"
        );
        let door =
            Door::open(LOOPBACK, 0, &format!("{status} Elsewhere\r\n{location}\r\n")).unwrap();
        let url = guard.parse(&format!("http://127.0.0.1:{}/v1", door.port)).unwrap();
        let endpoint = Arc::new(Endpoint {
            name: "custom".to_owned(),
            upstream: Upstream::Guarded(url.chat_completions()),
            key: Key::Users(SecretString::from("sk-of-a-user")),
            habits: ORDINARY,
            is_added: false,
        });
        let refusal = endpoint
            .open(&Clients::new(CONNECT_TIMEOUT).unwrap(), &guard, &question)
            .await
            .unwrap_err();
        assert_eq!(refusal.error.code(), Code::ProviderInvalid, "{status}");
        let said = door.said();
        assert_eq!(said.len(), 1, "{status}");
        assert!(said[0].contains("Bearer sk-of-a-user"), "{said:?}");
    }
    assert_eq!(inside.said(), Vec::<String>::new());
}

#[tokio::test]
async fn the_system_is_asked_for_names() {
    let addresses = SystemLookup::default().addresses("localhost").await.unwrap();
    assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
}
