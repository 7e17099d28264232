//! Request bodies: taken with clean texts, or refused with nothing of them in the refusal.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::super::extract::parse;
use super::super::reroll::RerollBody;
use super::super::stream::StartBody;
use super::super::{bots, conversations, keys};
use crate::bot::BotSettings;
use crate::error::{Code, Error};
use crate::provider::{Providers, UpstreamAllow};
use crate::store::Place;
use crate::turn::Turn;

/// What stands for a user's words: no refusal may have it. Field names are ours, so a refusal may name one.
const CANARY: &str = "canary";

static PROVIDERS: LazyLock<Providers> = LazyLock::new(|| {
    let Ok(providers) = Providers::new(&[], UpstreamAllow::default(), |_| None) else {
        panic!("this machine has no certificate authorities")
    };
    providers
});

/// The first byte says what it is the body of.
pub(crate) fn body(input: &[u8]) {
    let Some((kind, body)) = input.split_first() else { return };
    let taken = match kind % 8 {
        0 => parse(body).and_then(StartBody::into_turn).map(|turn| check_turn(&turn)),
        1 => parse::<RerollBody>(body).map(drop),
        2 => parse(body)
            .and_then(|settings| bots::check(settings, &PROVIDERS))
            .map(|settings| check_bot(&settings)),
        3 => parse::<Map<String, Value>>(body)
            .and_then(|patch| bots::patched(&BotSettings::demo(), patch))
            .and_then(|settings| bots::check(settings, &PROVIDERS))
            .map(|settings| check_bot(&settings)),
        4 => parse(body).and_then(|body| keys::check(body, &PROVIDERS)).map(drop),
        5 => parse::<conversations::CreateBody>(body).map(drop),
        6 => parse::<conversations::PatchBody>(body).map(drop),
        _ => {
            let title = String::from_utf8_lossy(body);
            conversations::title(&title).map(|title| check_text(&title))
        }
    };
    if let Err(error) = taken {
        check_refusal(&error);
    }
}

fn check_refusal(error: &Error) {
    assert_eq!(error.code(), Code::InvalidRequest, "{error}");
    assert!(!error.to_operator().contains(CANARY), "{error}");
    assert!(error.message().ends_with('.') && error.message().len() < 1_000, "{error}");
}

fn check_text(text: &str) {
    assert!(!text.contains(['\0', '\r']), "{text:?}");
}

fn check_turn(turn: &Turn) {
    let ask = &turn.ask;
    let mut texts: Vec<_> = ask.system.iter().map(String::as_str).collect();
    match &ask.place {
        Place::Reply { parent_id, input, .. } => {
            assert!(input.is_some() || parent_id.is_some() || ask.messages.is_some());
            assert!(input.as_deref().is_none_or(|input| !input.trim().is_empty()));
            texts.extend(input.as_deref());
        }
        Place::Nowhere => assert!(ask.messages.is_some(), "there is something to answer"),
        Place::Announced { .. } => {}
        Place::Reroll { .. } => panic!("a reroll has a route of its own"),
    }
    if let Some(messages) = &ask.messages {
        assert!(!messages.is_empty());
        texts.extend(messages.iter().map(|beat| beat.content.as_str()));
    }
    texts.into_iter().for_each(check_text);
    assert!(ask.max_tokens.is_none_or(|max_tokens| max_tokens > 0));
    assert!(ask.temperature.is_none_or(|temperature| (0.0..=2.0).contains(&temperature)));
    assert!(turn.stream_id.as_str().len() <= 128);
}

/// What a bot can have is what it has, also when it is given again as it was given out.
fn check_bot(settings: &BotSettings) {
    for text in [&settings.name, &settings.model, &settings.system_prompt] {
        check_text(text);
    }
    assert!(!settings.name.is_empty() && PROVIDERS.knows(&settings.provider));
    assert!(settings.max_tokens.is_none_or(|max_tokens| max_tokens < settings.context_size));
    let Ok(Value::Object(given_out)) = serde_json::to_value(settings) else {
        panic!("a bot is a JSON object")
    };
    for again in [
        parse(Value::from(given_out.clone()).to_string().as_bytes()),
        bots::patched(settings, given_out),
        bots::patched(settings, Map::new()),
    ] {
        let again = again.and_then(|again| bots::check(again, &PROVIDERS));
        // JSON's numbers are read to all bits but the last.
        let is_same = |a: f64, b: f64| (a - b).abs() <= f64::EPSILON;
        let Ok(again) = again else { panic!("{settings:?} cannot be given again") };
        assert!(match (again.temperature, settings.temperature) {
            (Some(now), Some(before)) => is_same(now, before),
            (now, before) => now == before,
        });
        let again = BotSettings { temperature: settings.temperature, ..again };
        assert!(again == *settings, "{settings:?}");
    }
}
