//! Bots: who answers, with which model, and how it is asked.

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::BotId;
use crate::number;
use crate::text::discreet;

/// How much a model may think before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the provider's own words for efforts")]
pub enum Reasoning {
    Off,
    Minimal,
    Low,
    Medium,
    High,
}

impl Reasoning {
    /// The word on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// What a user may say of a bot.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct BotSettings {
    /// What the reader calls it.
    pub name: String,
    /// One of the relay's providers.
    pub provider: String,
    /// The provider's name of the model.
    pub model: String,
    /// Where provider `custom` is; absent for all others.
    #[serde(default)]
    pub base_url: Option<String>,
    /// What the model is told before everything else.
    #[serde(default, deserialize_with = "null_as_default")]
    pub system_prompt: String,
    /// Randomness, 0 to 2; absent: the provider's default.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Tokens that an answer may have; absent: the provider's default.
    #[serde(default, deserialize_with = "number::count")]
    pub max_tokens: Option<u32>,
    /// Tokens that prompt and answer together may have.
    #[serde(default = "default_context_size", deserialize_with = "context_size")]
    pub context_size: u32,
    /// How much the model thinks; absent: the provider's default.
    #[serde(default)]
    pub reasoning: Option<Reasoning>,
    /// Whether readers see what it thinks. What they do not see is not kept.
    #[serde(default, deserialize_with = "null_as_default")]
    pub show_reasoning: bool,
    /// Whether it answers where neither the request nor the conversation names a bot.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_default: bool,
}

discreet!(BotSettings { provider, model, context_size });

/// Storytellr's own default.
fn default_context_size() -> u32 {
    10_000
}

/// Forms send null for what nobody filled in.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn context_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(number::count(deserializer)?.unwrap_or_else(default_context_size))
}

impl BotSettings {
    /// The bot that `dev` gives to a user who has none, so that a first story needs no key and no network.
    #[must_use]
    pub fn demo() -> Self {
        Self {
            name: "Demo".to_owned(),
            provider: "demo".to_owned(),
            model: "lighthouse".to_owned(),
            base_url: None,
            system_prompt: String::new(),
            temperature: None,
            max_tokens: None,
            context_size: default_context_size(),
            reasoning: None,
            show_reasoning: false,
            is_default: false,
        }
    }
}

/// A bot of some user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bot {
    /// Its row.
    pub id: BotId,
    /// What its user said of it.
    #[serde(flatten)]
    pub settings: BotSettings,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// When it was last changed.
    pub updated_at: jiff::Timestamp,
}
