//! The prompt: what the model is told, trimmed to what fits.
//!
//! Pure: everything that has to be read was read before. Tokens are counted with OpenAI's `o200k_base` vocabulary. Other
//! models' own counts differ by some percent, which is why a bot's `context_size` is best set a little below the truth.

use crate::bot::BotSettings;
use crate::error::{Code, Error};
use crate::story::{Beat, Role};
use crate::text::{self, discreet};

/// What a message costs beside its text: role and separators, as OpenAI counts them.
const TOKENS_PER_MESSAGE: usize = 4;

/// What the beginning of the answer costs, as OpenAI counts it.
const TOKENS_PER_PROMPT: usize = 3;

/// Text is counted in slices of this many bytes, so that counting can stop when the limit is passed, and so that no
/// text is slow to count. A cut can make one token two, which is one in a thousand.
const COUNT_SLICE_LEN: usize = 4 << 10;

/// Bytes of a token of English; other languages have fewer.
const BYTES_PER_TOKEN: usize = 4;

/// What the caller adds to what is saved.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Additions<'a> {
    /// Instructions of the request.
    pub system: Option<&'a str>,
    /// A hint for this attempt alone.
    pub guidance: Option<&'a str>,
}

discreet!(Additions<'_> {});

/// The messages for the model: `system_prompt`, `system` and `guidance` as one system message, then the beats, without
/// the oldest if they would not fit into `context_size` together with `max_tokens` of answer. System text and the last
/// user's beat are never left out. Replies whose question was left out go with it.
///
/// # Errors
/// `ContextTooLong` if what is never left out does not fit by itself.
pub fn assemble(
    bot: &BotSettings,
    additions: &Additions<'_>,
    beats: Vec<Beat>,
    max_tokens: Option<u32>,
) -> Result<Vec<Beat>, Error> {
    let system = [Some(bot.system_prompt.as_str()), additions.system, additions.guidance];
    let system: Vec<_> =
        system.into_iter().flatten().filter(|text| !text.trim().is_empty()).collect();
    let mut beats = beats;
    if !system.is_empty() {
        // One message: many models' templates know of no second system message.
        beats.insert(0, Beat { role: Role::System, content: system.join("\n\n") });
    }
    let room = bot.context_size.saturating_sub(max_tokens.unwrap_or(0)) as usize;
    trim(beats, room.saturating_sub(TOKENS_PER_PROMPT)).ok_or_else(|| {
        Error::new(
            Code::ContextTooLong,
            format!(
                "The system text and the last message do not fit into the bot's `context_size` of {} tokens{}. Shorten \
                 them, or raise `context_size`.",
                bot.context_size,
                max_tokens.map(|tokens| format!(" beside `max_tokens` of {tokens}")).unwrap_or_default(),
            ),
        )
    })
}

/// The number of tokens of a prompt, with what its messages cost beside their text.
#[must_use]
pub fn count_prompt(messages: &[Beat]) -> u64 {
    let tokens = |beat: &Beat| TOKENS_PER_MESSAGE + count_tokens(&beat.content, usize::MAX);
    (TOKENS_PER_PROMPT + messages.iter().map(tokens).sum::<usize>()) as u64
}

/// Loads what tokens are counted with, which takes half a second, once. Without it the first count does.
pub fn load_vocabulary() {
    tiktoken_rs::o200k_base_singleton();
}

/// The number of tokens of `text`, or some number above `limit` if it has more than that.
#[must_use]
pub fn count_tokens(text: &str, limit: usize) -> usize {
    let mut rest = text;
    let mut tokens = 0;
    while !rest.is_empty() && tokens <= limit {
        let slice = text::prefix(rest, COUNT_SLICE_LEN);
        tokens += tiktoken_rs::o200k_base_singleton().encode_ordinary(slice).len();
        rest = &rest[slice.len()..];
    }
    tokens
}

/// About how many tokens a text of so many bytes has, where it cannot be read, or would take too long to.
#[must_use]
pub fn estimate_tokens(len: usize) -> u64 {
    len.div_ceil(BYTES_PER_TOKEN) as u64
}

/// The beats that fit into `room` tokens; `None` if those that must stay do not.
fn trim(beats: Vec<Beat>, room: usize) -> Option<Vec<Beat>> {
    let bytes: usize = beats.iter().map(|beat| beat.content.len() + TOKENS_PER_MESSAGE).sum();
    if bytes <= room {
        return Some(beats);
    }
    let last_user = beats.iter().rposition(|beat| beat.role == Role::User);
    let must_stay = |at: usize| beats[at].role == Role::System || Some(at) == last_user;
    let mut left = room;
    let mut take = |at: usize| {
        let tokens = TOKENS_PER_MESSAGE + count_tokens(&beats[at].content, left);
        left.checked_sub(tokens).map(|rest| left = rest)
    };
    let mut stays = vec![false; beats.len()];
    for at in (0..beats.len()).filter(|&at| must_stay(at)) {
        take(at)?;
        stays[at] = true;
    }
    let mut cut = 0;
    for at in (0..beats.len()).rev().filter(|&at| !must_stay(at)) {
        if take(at).is_none() {
            cut = at + 1;
            break;
        }
        stays[at] = true;
    }
    for (at, beat) in beats.iter().enumerate().skip(cut) {
        match beat.role {
            Role::Assistant if cut > 0 => stays[at] = false,
            Role::Assistant | Role::User => break,
            Role::System => {}
        }
    }
    Some(beats.into_iter().zip(stays).filter_map(|(beat, stays)| stays.then_some(beat)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bot with that much context, and a prompt in short: `s` system, `u` user, `a` assistant, each with its number
    /// of words. "one " is one token, so a beat of n words costs n + 4.
    #[track_caller]
    fn check(context_size: u32, beats: &str, expected: Option<&str>) {
        let bot = BotSettings { context_size, ..BotSettings::demo() };
        let parse = |beat: &str| {
            let role = match &beat[..1] {
                "s" => Role::System,
                "u" => Role::User,
                _ => Role::Assistant,
            };
            Beat { role, content: " one".repeat(beat[1..].parse().unwrap()) }
        };
        let show = |beat: &Beat| format!("{}{}", &beat.role.as_str()[..1], beat.content.len() / 4);
        let beats = beats.split_whitespace().map(parse).collect();
        let prompt = assemble(&bot, &Additions::default(), beats, None);
        let prompt = prompt.ok().map(|beats| beats.iter().map(show).collect::<Vec<_>>().join(" "));
        assert_eq!(prompt.as_deref(), expected);
    }

    #[test]
    fn the_oldest_go_first() {
        check(1000, "u10 a10 u10", Some("u10 a10 u10"));
        check(3 + 14 * 3, "u10 a10 u10", Some("u10 a10 u10"));
        check(3 + 14 * 3, "u10 a10 u10 a10 u10", Some("u10 a10 u10"));
    }

    #[test]
    fn system_text_and_the_last_user_turn_stay() {
        check(3 + 14 * 2, "s10 u10 a10 u10", Some("s10 u10"));
        check(3 + 14 * 2, "u10 s10 a10 u10", Some("s10 u10"));
        check(3 + 14 * 2 - 1, "s10 u10 a10 u10", None);
        check(10, "u10", None);
        check(3 + 14 + 6, "u10 a10 u10 a2", Some("u10 a2"));
    }

    #[test]
    fn a_reply_goes_with_its_question() {
        check(3 + 14 * 2, "u10 a10 u10", Some("u10"));
        check(3 + 14 * 4, "u50 a10 u10 a10 u10", Some("u10 a10 u10"));
        check(3 + 14 * 2, "a10 u10", Some("a10 u10"));
    }

    #[test]
    fn system_texts_become_one_message_in_order() {
        let bot = BotSettings { system_prompt: "first".to_owned(), ..BotSettings::demo() };
        let additions = Additions { system: Some("second"), guidance: Some("third") };
        let prompt = assemble(
            &bot,
            &additions,
            vec![Beat { role: Role::User, content: "hi".to_owned() }],
            Some(10),
        );
        let prompt: Vec<_> =
            prompt.unwrap().into_iter().map(|beat| (beat.role, beat.content)).collect();
        assert_eq!(
            prompt,
            [(Role::System, "first\n\nsecond\n\nthird".to_owned()), (Role::User, "hi".to_owned())]
        );
    }

    #[test]
    fn max_tokens_needs_its_room() {
        let bot = BotSettings { context_size: 100, ..BotSettings::demo() };
        let beats = || vec![Beat { role: Role::User, content: " one".repeat(50) }];
        assert!(assemble(&bot, &Additions::default(), beats(), Some(43)).is_ok());
        let error = assemble(&bot, &Additions::default(), beats(), Some(44)).unwrap_err();
        assert_eq!(error.code(), Code::ContextTooLong);
    }

    #[test]
    fn counting_stops_at_the_limit() {
        assert_eq!(count_tokens(" one one", 100), 2);
        let long = " one".repeat(1_000_000);
        assert!((101..3000).contains(&count_tokens(&long, 100)));
    }
}
