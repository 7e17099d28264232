//! What was seen, as tables.

use std::fmt::Write;
use std::fs;

use super::attack::Attack;
use super::run::{ANSWERS_PER_SECOND, CASES, LISTS_PER_SECOND, Seen};
use crate::Failure;
use crate::load::spread::{Spread, or_none};
use crate::load::surroundings::Surroundings;

const DOCUMENT: &str = "docs/siege.md";

/// What a user's p99 may become beside an attack, by what it is without one.
const RATIO_MAX: f64 = 2.0;

/// The three cases of each round.
type Rounds = [[Seen; CASES.len()]];

/// Where the cases are in a round.
const CALM: usize = 0;
const BESIEGED: usize = 1;
const ELSEWHERE: usize = 2;

const HEAD: &str = "\
| | list p50, ms | p99, ms | by calm's | first token p50, ms | p99, ms | by calm's | token p99, ms | failed | CPU, % | memory before, MiB | at most | after | within, s |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
";

/// All that was seen.
#[derive(Debug, Default)]
pub(super) struct Report {
    summary: String,
    tables: String,
    pub(super) surroundings: Surroundings,
}

impl Report {
    /// Takes the rounds of an attack; the table of it.
    pub(super) fn add(&mut self, attack: &Attack, rounds: &Rounds) -> String {
        let table = format!("\n## {}: {}\n\n{HEAD}{}", attack.name, attack.about, rows(rounds));
        let table = format!("{table}\n{}\n", connections(rounds));
        // Writing into memory does not fail.
        let _infallible = writeln!(self.summary, "{}", summary(attack, rounds));
        self.tables.push_str(&table);
        table
    }

    pub(super) fn write(&mut self, rounds: usize) -> Result<(), Failure> {
        let document = format!(
            "{}\n{}\n\n{SUMMARY_HEAD}{}{}",
            introduction(),
            self.surroundings.tell(rounds)?,
            self.summary,
            self.tables
        );
        fs::write(DOCUMENT, document)?;
        Ok(())
    }
}

fn introduction() -> String {
    format!(
        "\
# Siege

Written by `cargo xtask siege`, which says in `xtask/src/siege/` what is done. While somebody tries to tie the relay up, a
user asks it for {LISTS_PER_SECOND} lists of bots in a second, each on a connection of its own, and for {ANSWERS_PER_SECOND} answers that are saved in
stories. The relay has its usual settings and limits (stories in SQLite, the journal on the disk), but for requests and
answers of one user, of which it allows any number: the attacker has a good token, and would be refused sooner otherwise.

Attacker, user, provider and relay share one machine, and the attacker has the least priority on it (`nice -n 19`) unless
it is slowhttptest, which mostly waits. In each round there are three cases in random order, on the same relay: *calm*;
*besieged*; and *elsewhere*, where the same attack goes to an nginx beside the relay. What an attack on something else costs
the user is no fault of the relay's: *own* is besieged by elsewhere. Ratios are of cases of one round; what is told is the
median of all rounds, with the least and the greatest in parentheses. All connections come from loopback, where no address
has a share of its own and only the total is limited: from the internet it is harder.

- *list*: from before its connection to the end of the list; *first token*: from the request, the provider thinks for
  20 ms of it; *token*: how long one is under way.
- *failed*: what the user asked for in vain, in all rounds.
- *CPU*: what the relay used while the user asked; 100 is one processor.
- *memory*: resident, of the relay. *within*: how long after the attack, at most, it was back to a tenth (or 4 MiB) above
  what it was before.
"
    )
}

const SUMMARY_HEAD: &str = "\
| attack | list p99 by calm's | own | first token p99 by calm's | own | failed | memory at most, MiB | it is back |
|---|--:|--:|--:|--:|--:|--:|---|
";

fn list_p99(seen: &Seen) -> f64 {
    or_none(seen.lists.whole_p99)
}

fn first_p99(seen: &Seen) -> f64 {
    or_none(seen.answers.first_p99)
}

fn failed(rounds: &Rounds, case: usize) -> usize {
    rounds.iter().map(|round| round[case].lists.failed + round[case].answers.failed).sum()
}

/// The ratio of two cases of a round.
fn ratio(rounds: &Rounds, value: fn(&Seen) -> f64, case: usize, to: usize) -> Spread {
    Spread::of(rounds.iter().map(|round| value(&round[case]) / value(&round[to])))
}

fn summary(attack: &Attack, rounds: &Rounds) -> String {
    let mut columns = vec![attack.name.to_owned()];
    for value in [list_p99, first_p99] {
        let beside = ratio(rounds, value, BESIEGED, CALM);
        let is_much = beside.median() > RATIO_MAX;
        let mark = if is_much { "**" } else { "" };
        columns.push(format!("{mark}{}{mark}", beside.long()));
        columns.push(ratio(rounds, value, BESIEGED, ELSEWHERE).long());
    }
    columns.push(failed(rounds, BESIEGED).to_string());
    let most = rounds.iter().map(|round| round[BESIEGED].most).fold(0.0, f64::max);
    columns.push(format!("{most:.0}"));
    columns.push(match within(rounds, BESIEGED) {
        Some(within) => format!("within {within:.1} s"),
        None => "**no**".to_owned(),
    });
    format!("| {} |", columns.join(" | "))
}

/// Within how many seconds memory came back in every round, if it did.
fn within(rounds: &Rounds, case: usize) -> Option<f64> {
    rounds.iter().try_fold(0.0, |longest, round| Some(round[case].back_after?.max(longest)))
}

fn rows(rounds: &Rounds) -> String {
    let mut rows = String::new();
    for (at, name) in [(CALM, "calm"), (BESIEGED, "besieged"), (ELSEWHERE, "elsewhere")] {
        let of = |value: fn(&Seen) -> f64| Spread::of(rounds.iter().map(|round| value(&round[at])));
        let by_calm = |value| match at {
            CALM => String::new(),
            _ => ratio(rounds, value, at, CALM).long(),
        };
        let columns = [
            of(|seen| or_none(seen.lists.whole_p50)).short(),
            of(list_p99).short(),
            by_calm(list_p99),
            of(|seen| or_none(seen.answers.first_p50)).short(),
            of(first_p99).short(),
            by_calm(first_p99),
            of(|seen| or_none(seen.answers.p99)).short(),
            failed(rounds, at).to_string(),
            of(|seen| seen.cpu * 100.0).whole(),
            of(|seen| seen.before).whole(),
            of(|seen| seen.most).whole(),
            of(|seen| seen.after).whole(),
            within(rounds, at).map_or("more".to_owned(), |within| format!("{within:.1}")),
        ];
        let _infallible = writeln!(rows, "| {name} | {} |", columns.join(" | "));
    }
    rows
}

/// What became of the attack's connections, and of what the user asked for in vain.
fn connections(rounds: &Rounds) -> String {
    let mut text = String::new();
    for (at, name) in [(BESIEGED, "The relay's"), (ELSEWHERE, "nginx's")] {
        let Some(last) = rounds.last() else { continue };
        let counts = last[at].account.iter().filter(|(_, count)| **count > 0);
        let counts: Vec<_> = counts.map(|(what, count)| format!("{count} {what}")).collect();
        let _infallible =
            write!(text, "{name} side of the attack, in the last round: {}. ", counts.join(", "));
    }
    let failures = rounds.iter().flatten().flat_map(|seen| [&seen.lists, &seen.answers]);
    if let Some(failure) = failures.into_iter().find_map(|reading| reading.failure.as_ref()) {
        let line = failure.lines().next().unwrap_or_default();
        let _infallible = write!(text, "The user failed with `{line}`.");
    }
    text.trim_end().to_owned()
}
