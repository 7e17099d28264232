//! How the providers differ within the one dialect, as data.
//!
//! Each row is from the provider's own API reference. What a provider does not know it must not be sent: some refuse
//! a request for one unknown field.

use serde_json::{Map, Value, json};

use crate::bot::Reasoning;

/// One provider's ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    pub(super) name: &'static str,
    pub(super) base_url: &'static str,
    /// Whether it answers nobody without a key.
    pub(super) needs_key: bool,
    /// What it calls the limit of an answer's tokens. `max_tokens` is refused by OpenAI's newer models, and
    /// `max_completion_tokens` is unknown to most servers that copy the older API.
    pub(super) max_tokens: &'static str,
    /// Whether it must be asked for `usage` by `stream_options`.
    pub(super) asks_usage: bool,
    pub(super) reasoning: ReasoningHabit,
    /// Where it says, for nothing, whether it knows the caller's key.
    pub(super) key_check: Option<&'static str>,
}

/// How a provider is told how much to think.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReasoningHabit {
    /// It has no such switch.
    None,
    /// `reasoning_effort: "low"`; switching it off has no word that all its models take, so off says nothing.
    Effort,
    /// `reasoning_effort: "low"`, and `"none"` for off.
    EffortOrNone,
    /// `reasoning: {"effort": "low"}` or `{"enabled": false}`.
    Object,
    /// `thinking: {"type": "enabled"}` or `{"type": "disabled"}`; efforts are not told apart.
    Thinking,
    /// `thinking: {"type": "enabled", "budget_tokens": …}`; off says nothing.
    ThinkingBudget,
}

/// The providers that the relay knows by name.
pub(super) const KNOWN: &[Habits] = &[
    Habits {
        name: "openai",
        base_url: "https://api.openai.com/v1",
        max_tokens: "max_completion_tokens",
        ..ORDINARY
    },
    Habits {
        name: "deepseek",
        base_url: "https://api.deepseek.com/v1",
        reasoning: ReasoningHabit::Thinking,
        ..ORDINARY
    },
    Habits {
        name: "openrouter",
        base_url: "https://openrouter.ai/api/v1",
        reasoning: ReasoningHabit::Object,
        // It lists its models to everybody.
        key_check: Some("/key"),
        ..ORDINARY
    },
    Habits {
        name: "groq",
        base_url: "https://api.groq.com/openai/v1",
        max_tokens: "max_completion_tokens",
        ..ORDINARY
    },
    // Refuses fields that it does not know, `stream_options` among them; sends usage unasked.
    Habits {
        name: "mistral",
        base_url: "https://api.mistral.ai/v1",
        asks_usage: false,
        reasoning: ReasoningHabit::None,
        ..ORDINARY
    },
    Habits { name: "xai", base_url: "https://api.x.ai/v1", ..ORDINARY },
    Habits {
        name: "together",
        base_url: "https://api.together.xyz/v1",
        reasoning: ReasoningHabit::None,
        ..ORDINARY
    },
    Habits {
        name: "gemini",
        base_url: "https://generativelanguage.googleapis.com/v1beta/openai",
        reasoning: ReasoningHabit::EffortOrNone,
        ..ORDINARY
    },
    Habits {
        name: "anthropic",
        base_url: "https://api.anthropic.com/v1",
        reasoning: ReasoningHabit::ThinkingBudget,
        // Its list of models wants the key in another header than its chat completions.
        key_check: None,
        ..ORDINARY
    },
    Habits {
        name: "ollama",
        base_url: "http://127.0.0.1:11434/v1",
        needs_key: false,
        reasoning: ReasoningHabit::EffortOrNone,
        ..ORDINARY
    },
];

/// The ways of a server about which nothing is known but that it copies OpenAI's API.
pub(super) const ORDINARY: Habits = Habits {
    name: "",
    base_url: "",
    needs_key: true,
    max_tokens: "max_tokens",
    asks_usage: true,
    reasoning: ReasoningHabit::Effort,
    key_check: Some("/models"),
};

impl Habits {
    /// The ways of the provider of that name.
    pub(super) fn of(name: &str) -> Option<Self> {
        KNOWN.iter().find(|habits| habits.name == name).copied()
    }
}

impl ReasoningHabit {
    /// Adds what tells the provider how much to think.
    pub(super) fn apply(self, reasoning: Reasoning, body: &mut Map<String, Value>) {
        let is_off = reasoning == Reasoning::Off;
        let effort = reasoning.as_str();
        let field = match self {
            Self::None => None,
            Self::Effort | Self::ThinkingBudget if is_off => None,
            Self::Effort => Some(("reasoning_effort", json!(effort))),
            Self::EffortOrNone => {
                Some(("reasoning_effort", json!(if is_off { "none" } else { effort })))
            }
            Self::Object if is_off => Some(("reasoning", json!({"enabled": false}))),
            Self::Object => Some(("reasoning", json!({"effort": effort}))),
            Self::Thinking => {
                Some(("thinking", json!({"type": if is_off { "disabled" } else { "enabled" }})))
            }
            Self::ThinkingBudget => Some((
                "thinking",
                json!({"type": "enabled", "budget_tokens": budget_tokens(reasoning)}),
            )),
        };
        if let Some((name, value)) = field {
            body.insert(name.to_owned(), value);
        }
    }
}

/// Anthropic counts thoughts instead of grading them; 1,024 is the least that it takes.
fn budget_tokens(reasoning: Reasoning) -> u32 {
    match reasoning {
        Reasoning::Off | Reasoning::Minimal | Reasoning::Low => 1_024,
        Reasoning::Medium => 4_096,
        Reasoning::High => 16_384,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(provider: &str, reasoning: Reasoning, expected: &Value) {
        let mut body = Map::new();
        Habits::of(provider).unwrap().reasoning.apply(reasoning, &mut body);
        assert_eq!(&Value::Object(body), expected, "{provider} {reasoning:?}");
    }

    #[test]
    fn each_provider_is_told_in_its_own_words_how_much_to_think() {
        check("openai", Reasoning::Low, &json!({"reasoning_effort": "low"}));
        check("openai", Reasoning::Off, &json!({}));
        check("gemini", Reasoning::Off, &json!({"reasoning_effort": "none"}));
        check("openrouter", Reasoning::High, &json!({"reasoning": {"effort": "high"}}));
        check("openrouter", Reasoning::Off, &json!({"reasoning": {"enabled": false}}));
        check("deepseek", Reasoning::Off, &json!({"thinking": {"type": "disabled"}}));
        check("deepseek", Reasoning::Medium, &json!({"thinking": {"type": "enabled"}}));
        check(
            "anthropic",
            Reasoning::Medium,
            &json!({"thinking": {"type": "enabled", "budget_tokens": 4096}}),
        );
        check("mistral", Reasoning::High, &json!({}));
    }

    /// Storytellr's bots have addresses and no providers' names, so the SQL over its tables has to know both.
    #[test]
    fn the_sql_over_storytellrs_tables_knows_the_same_providers() {
        for sql in [
            include_str!("../../supabase/adapters/storytellr-v0.sql"),
            include_str!("../../supabase/adapters/storytellr-v0-move.sql"),
        ] {
            for habits in KNOWN {
                let row = format!("('{}', '{}')", habits.name, habits.base_url);
                assert!(sql.contains(&row), "{row}");
            }
        }
    }

    #[test]
    fn every_known_provider_has_its_own_name_and_address() {
        for habits in KNOWN {
            assert!(url::Url::parse(habits.base_url).is_ok(), "{}", habits.name);
            assert_eq!(KNOWN.iter().filter(|other| other.name == habits.name).count(), 1);
        }
    }
}
