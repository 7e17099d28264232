//! Names that say what a test wants: a name server, and a network of the test's own in which it is the only one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;

/// What a name leads to, one list of addresses after the other; the last stays.
type Answers = Vec<Vec<IpAddr>>;

/// A name server at the one place where the system's resolver looks for it.
pub(crate) struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// Answers every question after a name's first with what is next; nothing lives longer than its answer.
    pub(crate) async fn start(names: &[(&str, &[&[&str]])]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:53").await.unwrap();
        let read = |addresses: &&[&str]| addresses.iter().map(|a| a.parse().unwrap()).collect();
        let names: HashMap<String, Answers> = names
            .iter()
            .map(|(name, answers)| ((*name).to_owned(), answers.iter().map(read).collect()))
            .collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut times: HashMap<(String, u16), usize> = HashMap::new();
            let mut answered: HashMap<(SocketAddr, Vec<u8>), Vec<u8>> = HashMap::new();
            let mut buffer = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let Some((name, kind, question_len)) = question(&buffer[..len]) else { continue };
                let question = &buffer[..question_len];
                // Who has waited for long asks the same again.
                let answer = answered.entry((from, question.to_vec())).or_insert_with(|| {
                    let time = times.entry((name.clone(), kind)).or_default();
                    let answers = names.get(&name).map(|all| &all[(*time).min(all.len() - 1)]);
                    *time += 1;
                    answer(question, kind, answers)
                });
                log.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                socket.send_to(answer, from).await.unwrap();
            }
        });
        Self { asked }
    }

    pub(crate) fn was_asked_for(&self, name: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked == name)
    }
}

const A: u16 = 1;
const AAAA: u16 = 28;

/// The name, the type, and where the question ends.
fn question(packet: &[u8]) -> Option<(String, u16, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let len = usize::from(*packet.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + len)?).to_ascii_lowercase());
        at += len;
    }
    let kind = u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?);
    Some((labels.join("."), kind, at + 4))
}

/// What has been asked, with those of the addresses that are of its type; without any list, there is no such name.
fn answer(question: &[u8], kind: u16, addresses: Option<&Vec<IpAddr>>) -> Vec<u8> {
    let data: Vec<Vec<u8>> = addresses
        .into_iter()
        .flatten()
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(v4), A) => Some(v4.octets().to_vec()),
            (IpAddr::V6(v6), AAAA) => Some(v6.octets().to_vec()),
            _ => None,
        })
        .collect();
    let status = if addresses.is_some() { 0x80 } else { 0x83 };
    let mut packet = question.to_vec();
    packet[2..4].copy_from_slice(&[0x81, status]);
    packet[6..8].copy_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    // Neither authorities nor anything additional.
    packet[8..12].fill(0);
    for data in data {
        // The name is where the question has it; the class is IN; the time to live is none.
        packet.extend_from_slice(&[0xc0, 12]);
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&[0, 1, 0, 0, 0, 0]);
        packet.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        packet.extend_from_slice(&data);
    }
    packet
}

/// Runs the ignored test `name` of this program where no other machine is, and no name server but 127.0.0.1. That place has
/// the addresses `own`; those in `others` lead to it too, as if they were another machine's. It takes the privileges to make
/// such a place: root's, sudo's, or those of a system that lets everybody.
pub(crate) fn run_alone(name: &str, own: &[&str], others: &[&str]) {
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text).unwrap();
    write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n");
    write("nsswitch.conf", "hosts: files dns\n");
    let mut script = "set -eu\nip link set lo up\n".to_owned();
    for address in own {
        writeln!(script, "ip address add {address} dev lo").unwrap();
    }
    // One may listen at any address.
    script.push_str("echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind\n");
    for address in others {
        // What is sent there is sent from elsewhere.
        let from = if address.contains(':') { "::1" } else { "127.0.0.1" };
        writeln!(script, "ip route add local {address} dev lo src {from}").unwrap();
    }
    for file in ["resolv.conf", "nsswitch.conf"] {
        let ours = files.path().join(file);
        writeln!(script, "mount --bind '{}' /etc/{file}", ours.display()).unwrap();
    }
    script.push_str("exec \"$0\" --exact \"$1\" --ignored --nocapture");
    let alone = |under: &[&str]| {
        let mut command = Command::new(under[0]);
        command.args(&under[1..]).args(["--net", "--mount"]);
        command
    };
    let ways: [&[&str]; 3] =
        [&["unshare"], &["unshare", "--map-root-user"], &["sudo", "-n", "unshare"]];
    let can = |way: &&[&str]| {
        alone(way)
            .args(["ip", "link", "set", "lo", "up"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let way = ways.into_iter().find(can);
    let way = way.expect("no network of one's own can be made here (`unshare`, `ip`): run the tests as root, or with sudo");
    let program = std::env::current_exe().unwrap();
    let output = alone(way).args(["sh", "-c", &script]).arg(program).arg(name).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success() && said[0].contains("1 passed"), "{}", said.join("\n"));
}
