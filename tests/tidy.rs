//! The rules of the code base that can be checked, checked.

#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected ends there and says so")]

use std::fs;
use std::path::{Path, PathBuf};

/// The longest file in lines.
const LINES_MAX: usize = 500;

/// The layers, lowest first. A module may use those of its own layer and of lower ones.
const LAYERS: &[&[&str]] = &[
    &[
        "beside",
        "bot",
        "clock",
        "commit",
        "error",
        "event",
        "id",
        "number",
        "prompt",
        "provider_key",
        "seal",
        "story",
        "text",
    ],
    &["redis_client", "sqlite"],
    &["auth", "journal", "limits", "outbox", "provider", "store"],
    &["assembly", "lifecycle", "outage", "relay"],
    &[
        "beginning",
        "ending",
        "generation",
        "outbox_worker",
        "own_key",
        "recovery",
        "replay",
        "saving",
        "spending",
        "turn",
    ],
    &["http"],
    &["app", "check", "cli", "config", "dev", "fuzzing", "migrate", "telemetry"],
];

/// Crates that may be used in one place only, so that no other part comes to depend on them.
const CONFINED: &[(&str, &[&str])] = &[
    ("axum", &["src/http/"]),
    ("httparse", &["src/provider/cleartext/"]),
    ("hyper", &["src/http/listener/"]),
    ("hyper_util", &["src/http/listener/"]),
    ("socket2", &["src/http/listener/", "src/provider/cleartext/"]),
    ("tower_http", &["src/http/"]),
    ("reqwest", &["src/auth/key_set/", "src/provider/", "src/store/functions/postgrest.rs"]),
    ("chacha20poly1305", &["src/seal/"]),
    // Whoever can make a client can call what a user typed without the guard.
    (
        "reqwest::Client",
        &["src/auth/key_set/", "src/provider/client.rs", "src/store/functions/postgrest.rs"],
    ),
    ("tiktoken_rs", &["src/prompt.rs"]),
    ("jsonwebtoken", &["src/auth/"]),
    ("use aws_lc_rs", &["src/auth/jwks/"]),
    ("rustix", &["src/journal/file/"]),
    ("rusqlite", &["src/journal/file/", "src/sqlite/", "src/store/sqlite/"]),
    ("redis", &["src/journal/shared/", "src/limits/shared/", "src/redis_client.rs"]),
    ("tokio_postgres", &["src/migrate/", "src/store/functions/postgres"]),
    ("deadpool_postgres", &["src/store/functions/postgres.rs"]),
    ("clap", &["src/cli.rs", "src/main.rs"]),
    ("tikv_jemallocator", &["src/main.rs"]),
];

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The top module that the file belongs to: `store` for `src/store/sqlite/begin.rs`.
    fn module(&self) -> &str {
        let path = self.path.strip_prefix("src/").unwrap();
        path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The text without the tests at its end, which may use anything.
    fn code(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap()
    }
}

impl Source {
    /// Whether it has a test of that name that is run: one that is ignored is none.
    fn runs(&self, test: &str) -> bool {
        let Some((before, _)) = self.text.split_once(&format!("fn {test}(")) else { return false };
        // The first is what stands before `fn` on its own line.
        let above = before.rsplit('\n').skip(1);
        let attributes: Vec<_> =
            above.take_while(|line| line.trim_start().starts_with(['#', '/'])).collect();
        attributes.iter().any(|line| line.contains("test"))
            && !attributes.iter().any(|line| line.contains("ignore"))
    }
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(!sources.is_empty());
    sources
}

#[test]
fn every_file_opens_by_saying_why_it_exists() {
    for source in sources("src").iter().chain(&sources("tests")) {
        assert!(source.text.starts_with("//! "), "{}", source.path);
    }
}

#[test]
fn files_are_one_idea() {
    for source in sources("src") {
        let lines = source.text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", source.path);
    }
}

#[test]
fn layers_use_only_what_is_below_them() {
    let layer = |module: &str| LAYERS.iter().position(|modules| modules.contains(&module));
    for source in sources("src") {
        if matches!(source.module(), "lib" | "main") {
            continue;
        }
        let own =
            layer(source.module()).unwrap_or_else(|| panic!("{} is in no layer", source.path));
        for used in source.code().split("crate::").skip(1) {
            let used: String =
                used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if let Some(used_layer) = layer(&used) {
                assert!(used_layer <= own, "{} uses {used}, which is above it", source.path);
            }
        }
    }
}

#[test]
fn crates_stay_where_they_belong() {
    for source in sources("src") {
        for (name, places) in CONFINED {
            let is_used = source.code().contains(&format!("{name}::"));
            let may_use = places.iter().any(|place| source.path.starts_with(place));
            assert!(!is_used || may_use, "{} uses {name}", source.path);
        }
    }
}

/// What people wrote, and secrets, under the names that fields of them have.
const PRIVATE: &[&str] = &[
    "content",
    "guidance",
    "input",
    "key",
    "master_key",
    "prompt",
    "reasoning",
    "secret",
    "system",
    "system_prompt",
    "text",
    "title",
    "token",
    "write_token",
];

/// What prints all of what is in it.
const PRINTED: &[&str] = &[
    "String",
    "Option<String>",
    "Cow<",
    "&str",
    "&'a str",
    "Option<&'a str>",
    "Vec<u8>",
    "Arc<str>",
    "Box<str>",
];

/// A type that holds what people wrote has the `Debug` of `text::discreet!`; one that holds a secret has it in a type that does not
/// print. So neither can be in a log or a panic by mistake.
#[test]
fn private_words_do_not_print() {
    for source in sources("src") {
        let mut derives = false;
        for line in source.code().lines() {
            if line.starts_with("#[derive(") {
                derives = line.contains("Debug");
            } else if line.starts_with('}')
                || (!line.starts_with([' ', '#', '/']) && line.ends_with(';'))
            {
                derives = false;
            }
            let field = line.trim_start();
            let is_visible = |field: &str| field.starts_with("pub");
            let field = field
                .split_once(' ')
                .filter(|_| is_visible(field))
                .map_or(field, |(_, field)| field);
            let Some((name, kind)) = field.split_once(": ") else { continue };
            let prints = PRINTED.iter().any(|printed| {
                kind.trim_end_matches(',') == *printed
                    || (printed.ends_with('<') && kind.starts_with(printed))
            });
            assert!(
                !(derives && PRIVATE.contains(&name) && prints),
                "{}: `{name}` is printed by a derived `Debug`",
                source.path
            );
        }
    }
}

#[test]
fn every_setting_is_in_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for source in sources("src/config") {
        for quoted in source.code().split('"').skip(1).step_by(2) {
            let is_setting = quoted.starts_with("RELAY_") || quoted.starts_with("SUPABASE_");
            let is_name = quoted.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            assert!(
                !(is_setting && is_name) || readme.contains(quoted),
                "{quoted} is not in README.md"
            );
        }
    }
}

#[test]
fn every_code_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protocol = fs::read_to_string(root.join("docs/protocol.md")).unwrap();
    let error = fs::read_to_string(root.join("src/error.rs")).unwrap();
    let codes = error.split("=> \"").skip(1).map(|rest| rest.split('"').next().unwrap());
    for code in codes {
        assert!(protocol.contains(&format!("`{code}`")), "{code} is not in docs/protocol.md");
    }
}

/// What stops an attack is worth as much as the test that shows it.
#[test]
fn every_test_that_security_rests_on_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let security = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let sources: Vec<_> = sources("src").into_iter().chain(sources("tests")).collect();
    let mut named = 0;
    for quoted in security.split('`').skip(1).step_by(2) {
        let Some((module, test)) =
            quoted.rsplit_once("::").filter(|(module, _)| *module != "module")
        else {
            continue;
        };
        named += 1;
        let path = module.replace("::", "/");
        let is_there =
            sources.iter().any(|source| source.path.contains(&path) && source.runs(test));
        assert!(is_there, "SECURITY.md names {quoted}, which is no test");
    }
    assert!(named > 40, "{named}");
}
