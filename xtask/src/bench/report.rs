//! What was measured, as tables and as a picture.

use std::fmt::Write;
use std::fs;

use super::run::Measured;
use super::scenario::{Case, Scenario};
use crate::Failure;
use crate::load::spread::{Spread, median, or_none};
use crate::load::surroundings::Surroundings;

const DOCUMENT: &str = "docs/benchmarks.md";
const PICTURE: &str = "docs/benchmarks.svg";

const INTRODUCTION: &str = "\
# Benchmarks

Written by `cargo xtask bench`, which says in `xtask/src/bench/` what is done. A scripted provider sends tokens that carry
the time at which they were sent, in chunks as OpenAI's are; the kernel notes when each arrives. Readers leave the processors
to what is measured: of a hundred streams at most, tokens are timed, and those readers look every other millisecond, the others
ten times a second. Between them are nginx (`proxy_buffering off`), nothing, or the relay doing all of its work: authenticating,
limiting, keeping the journal, saving.
All are processes on one machine. In each round every case is run once, in random order; a ratio is of two runs of one
round, and what is told is the median of all rounds, with the least and the greatest in parentheses.

- *CPU*: processor time of the process in the middle for each token that the provider sent, from the first request to the
  last end, by `/proc`.
- *token*: how long a token is under way once it was sent; where all streams begin at once, of those that come while all run. A
  provider that gets no processor sends later, which shows in *tokens/s* alone; *added*: the part of that which the direct connection does not need, by nginx's.
- *first*: from the request to the first token; the provider thinks for 20 ms of it. *over direct*: what of that the direct
  connection does not need. Streams begin all at the same moment if nothing else is said.
- *memory*: resident at most; *each*: its growth over what was there before, by the number of streams.
";

/// All that was measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    tables: String,
    measured: Vec<(Scenario, Vec<Vec<Measured>>)>,
    pub(super) surroundings: Surroundings,
}

impl Report {
    /// Takes the rounds of a scenario, each with what every case has shown; the table of it.
    pub(super) fn add(&mut self, scenario: Scenario, rounds: Vec<Vec<Measured>>) -> String {
        let table = table(&scenario, &rounds);
        self.tables.push_str(&table);
        self.measured.push((scenario, rounds));
        table
    }

    pub(super) fn write(&mut self) -> Result<(), Failure> {
        let rounds = self.measured.iter().map(|(_, rounds)| rounds.len()).max().unwrap_or(0);
        let document = format!(
            "{INTRODUCTION}\n{}\n\n![Latency and memory over the number of streams](benchmarks.svg)\n{}",
            self.surroundings.tell(rounds)?,
            self.tables
        );
        fs::write(DOCUMENT, document)?;
        fs::write(PICTURE, self.picture())?;
        Ok(())
    }

    /// Latency and memory over the number of streams, of everything that was beside nginx.
    fn picture(&self) -> String {
        let beside_nginx = self.measured.iter().filter(|(scenario, _)| {
            let is_paced = scenario.cases[0].load.script.rate > 0;
            // These two are others of the same numbers.
            let is_of_starts = matches!(scenario.name, "starts" | "burst");
            scenario.cases[0].name == "nginx" && is_paced && !is_of_starts
        });
        let (mut latency, mut memory) = (Panel::new("token, ms"), Panel::new("memory, MiB"));
        for (scenario, rounds) in beside_nginx {
            for (at, Case { name, load, .. }) in scenario.cases.iter().enumerate() {
                let of = |value: fn(&Measured) -> f64| {
                    median(&mut rounds.iter().map(|round| value(&round[at])).collect::<Vec<_>>())
                };
                latency.add(name, load.streams, of(|measured| or_none(measured.reading.p50)));
                if name != "direct" {
                    memory.add(name, load.streams, of(|measured| measured.memory));
                }
            }
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 340\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"860\" height=\"340\" fill=\"white\"/>\n{}{}</svg>\n",
            latency.draw(60.0),
            memory.draw(490.0)
        )
    }
}

fn table(scenario: &Scenario, rounds: &[Vec<Measured>]) -> String {
    let Scenario { name, about, cases } = scenario;
    let base = &cases[0].name;
    let mut table = format!(
        "\n## {name}: {about}\n\n| | tokens/s | CPU, µs | by {base}'s | token p50, ms | p99, ms | added p50 | added p99 | first p50, ms | over direct | memory, MiB | each, KiB |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    let direct = cases.iter().position(|case| case.name == "direct");
    for (at, case) in cases.iter().enumerate() {
        let of = |value: &dyn Fn(&[Measured]) -> f64| {
            Spread::of(rounds.iter().map(|round| value(round)))
        };
        let cpu = |measured: &Measured| or_none(measured.cpu);
        let added = |value: fn(&Measured) -> f64| {
            of(&|round| match direct {
                Some(direct) if direct != at && at > 0 => {
                    let without = value(&round[direct]);
                    (value(&round[at]) - without) / (value(&round[0]) - without)
                }
                _ => f64::NAN,
            })
        };
        let each = |round: &[Measured]| {
            (round[at].memory - round[at].memory_before) * 1024.0 / case.load.streams as f64
        };
        let columns = [
            of(&|round| round[at].reading.tokens as f64 / round[at].reading.seconds).whole(),
            of(&|round| cpu(&round[at])).short(),
            if at > 0 {
                of(&|round| cpu(&round[at]) / cpu(&round[0])).long()
            } else {
                String::new()
            },
            of(&|round| or_none(round[at].reading.p50)).short(),
            of(&|round| or_none(round[at].reading.p99)).short(),
            added(|measured| or_none(measured.reading.p50)).long(),
            added(|measured| or_none(measured.reading.p99)).long(),
            of(&|round| or_none(round[at].reading.first_p50)).short(),
            of(&|round| match direct {
                Some(direct) if direct != at => {
                    let first = |at: usize| or_none(round[at].reading.first_p50);
                    first(at) - first(direct)
                }
                _ => f64::NAN,
            })
            .long(),
            of(&|round| round[at].memory).whole(),
            of(&each).whole(),
        ];
        // Writing into memory does not fail.
        let _infallible = writeln!(table, "| {} | {} |", case.name, columns.join(" | "));
    }
    table
}

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 240.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 4] = ["#7a7a7a", "#2a9d5c", "#c0392b", "#3465a4"];

/// A diagram with lines over the number of streams, both axes logarithmic.
struct Panel {
    title: &'static str,
    lines: Vec<(String, Vec<(f64, f64)>)>,
}

impl Panel {
    fn new(title: &'static str) -> Self {
        Self { title, lines: Vec::new() }
    }

    fn add(&mut self, line: &str, streams: usize, value: f64) {
        let point = (streams as f64, value.max(0.01));
        match self.lines.iter_mut().find(|(name, _)| name == line) {
            Some((_, points)) => points.push(point),
            None => self.lines.push((line.to_owned(), vec![point])),
        }
    }

    fn draw(&self, left: f64) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let bounds = |value: fn(&(f64, f64)) -> f64| {
            let least = points().map(value).fold(f64::MAX, f64::min).log10().floor();
            let greatest = points().map(value).fold(f64::MIN, f64::max).log10().ceil();
            (least, greatest.max(least + 1.0))
        };
        let (x_bounds, y_bounds) = (bounds(|point| point.0), bounds(|point| point.1));
        let part = |value: f64, (least, greatest): (f64, f64)| {
            (value.log10() - least) / (greatest - least)
        };
        let x = |value: f64| left + WIDTH * part(value, x_bounds);
        let y = |value: f64| TOP + HEIGHT * (1.0 - part(value, y_bounds));
        let (right, bottom) = (left + WIDTH, TOP + HEIGHT);
        let mut svg = format!(
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>\n",
            TOP - 16.0,
            self.title
        );
        for power in x_bounds.0 as i32..=x_bounds.1 as i32 {
            let (at, value) = (x(10_f64.powi(power)), 10_f64.powi(power));
            svg += &format!(
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>\n",
                bottom + 16.0
            );
        }
        for power in y_bounds.0 as i32..=y_bounds.1 as i32 {
            let (at, value) = (y(10_f64.powi(power)), 10_f64.powi(power));
            svg += &format!(
                "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>\n",
                left - 6.0,
                at + 4.0
            );
        }
        svg += &format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">streams</text>\n",
            left + WIDTH / 2.0,
            bottom + 34.0
        );
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let line: Vec<_> = points
                .iter()
                .map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)))
                .collect();
            svg += &format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
                line.join(" ")
            );
            if let Some((at, value)) = points.last() {
                svg += &format!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>\n",
                    x(*at) - 24.0,
                    y(*value) - 6.0
                );
            }
        }
        svg
    }
}
