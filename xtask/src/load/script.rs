//! What the provider does with a request: it is told by the name of the model, which goes through everything unchanged.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Failure;

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Script {
    /// How long the model thinks first.
    pub(crate) thinking: Duration,
    /// Text without times that comes first, in bytes, in pieces of 4 KiB.
    pub(crate) prelude: usize,
    /// Tokens with times.
    pub(crate) tokens: usize,
    /// Tokens a second; 0: as fast as they are taken.
    pub(crate) rate: usize,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thinking, prelude, tokens, rate } = self;
        write!(f, "bench-{}-{prelude}-{tokens}-{rate}", thinking.as_millis())
    }
}

impl FromStr for Script {
    type Err = Failure;

    fn from_str(model: &str) -> Result<Self, Failure> {
        let mut numbers = model.strip_prefix("bench-").unwrap_or_default().split('-');
        let mut next = || Ok::<usize, Failure>(numbers.next().ok_or("no number")?.parse()?);
        Ok(Self {
            thinking: Duration::from_millis(next()? as u64),
            prelude: next()?,
            tokens: next()?,
            rate: next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_names_its_script() {
        let script =
            Script { thinking: Duration::from_millis(20), prelude: 5, tokens: 1_000, rate: 100 };
        assert_eq!(script.to_string().parse::<Script>().unwrap(), script);
        assert!("gpt-5".parse::<Script>().is_err());
    }
}
