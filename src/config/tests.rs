//! Settings as an operator writes them, right and wrong.

use std::path::Path;

use super::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::ExposeSecret;

const SECRET: &str = "super-secret-jwt-token-with-at-least-32-characters-long";

fn read(mode: Mode, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let lookup = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    };
    Config::from_env(mode, lookup).map_err(|faults| faults.0)
}

/// The file that stories are kept in, if it is one.
fn file(config: &Config) -> Option<&Path> {
    match &config.database {
        Database::Sqlite(path) => Some(path),
        Database::Memory | Database::Postgres(_) | Database::Supabase { .. } => None,
    }
}

fn a_minute(requests: u32) -> Rate {
    Rate { requests, window: Duration::from_secs(60) }
}

#[test]
fn dev_needs_nothing() {
    let config = read(Mode::Dev, &[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(file(&config), Some(Path::new("./relay-data/relay.db")));
    assert_eq!(config.auth.issuers, Issuers::Any);
    assert!(config.origins.allow("http://localhost:5173"));
    assert_eq!(config.allowances.users.rate, a_minute(60));
}

#[test]
fn serve_needs_to_know_whose_tokens_it_takes() {
    let faults = read(Mode::Serve, &[]).unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    let config = read(
        Mode::Serve,
        &[
            ("SUPABASE_JWT_SECRET", SECRET),
            ("SUPABASE_URL", "https://x.supabase.co/"),
            ("RELAY_DATABASE_URL", "sqlite:/tmp/x.db"),
        ],
    )
    .unwrap();
    assert_eq!(
        config.auth.issuers,
        Issuers::Only(vec!["https://x.supabase.co/auth/v1".to_owned()])
    );
    assert_eq!(file(&config), Some(Path::new("/tmp/x.db")));
    assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
    assert!(!config.origins.allow("http://localhost:5173"));
}

/// Where calls go and with which key, or what is wrong.
#[track_caller]
fn check_supabase(variables: &[(&str, &str)], expected: Result<(&str, Option<&str>), &str>) {
    let found = read(Mode::Dev, variables).map(|config| match config.database {
        Database::Supabase { rest_url, key } => (rest_url, key),
        other => panic!("{other:?}"),
    });
    match (found, expected) {
        (Ok((rest_url, key)), Ok((expected_url, expected_key))) => {
            assert_eq!(rest_url.as_str(), expected_url);
            assert_eq!(key.as_ref().map(ExposeSecret::expose_secret), expected_key);
        }
        (Err(faults), Err(name)) => {
            assert!(faults.len() == 1 && faults[0].contains(name), "{faults:?}");
        }
        (found, expected) => panic!("{found:?} is not {expected:?}"),
    }
}

#[test]
fn a_project_is_called_with_its_publishable_key_and_no_other() {
    let url = ("SUPABASE_URL", "https://x.supabase.co/");
    let rest = "https://x.supabase.co/rest/v1";
    let legacy = |role: &str| {
        let claims = URL_SAFE_NO_PAD.encode(format!("{{\"role\":\"{role}\"}}"));
        format!("eyJhbGciOiJIUzI1NiJ9.{claims}.x")
    };
    let (anon, service_role) = (legacy("anon"), legacy("service_role"));
    let publishable = ("SUPABASE_PUBLISHABLE_KEY", "sb_publishable_x");
    check_supabase(&[url, publishable], Ok((rest, Some("sb_publishable_x"))));
    check_supabase(&[url, ("SUPABASE_ANON_KEY", &anon)], Ok((rest, Some(&anon))));
    check_supabase(
        &[("SUPABASE_REST_URL", "http://127.0.0.1:3000")],
        Ok(("http://127.0.0.1:3000/", None)),
    );
    check_supabase(&[url], Err("SUPABASE_PUBLISHABLE_KEY"));
    check_supabase(
        &[url, ("SUPABASE_PUBLISHABLE_KEY", "sb_secret_x")],
        Err("SUPABASE_PUBLISHABLE_KEY"),
    );
    check_supabase(&[url, ("SUPABASE_ANON_KEY", &service_role)], Err("SUPABASE_ANON_KEY"));
    check_supabase(
        &[url, ("SUPABASE_ANON_KEY", &legacy("authenticated"))],
        Err("SUPABASE_ANON_KEY"),
    );
    for wrong in ["ftp://x", "https://user:pass@x.example", "https://x.example?apikey=x"] {
        check_supabase(&[("SUPABASE_REST_URL", wrong)], Err("SUPABASE_REST_URL"));
    }
}

#[test]
fn every_fault_is_listed_at_once() {
    let wrong = [
        ("RELAY_LISTEN", "8080"),
        ("RELAY_DATABASE_URL", "postgres://x"),
        ("SUPABASE_JWT_SECRET", "short"),
        ("RELAY_REDIS_URL", "localhost:6379"),
        (
            "RELAY_CORS_ORIGINS",
            "https://ok.example.com,null,*,https://a.example.com/,https://*.*.com",
        ),
        (
            "RELAY_PROVIDERS",
            "x,Bad=https://x.y,demo=https://x.y,a=https://x.y,a=https://x.z,f=file:///x",
        ),
        ("RELAY_MASTER_KEYS", "k1,k2:AQEB"),
        ("RELAY_UPSTREAM_ALLOW", "10.0.0.0/8,300.0.0.0/8,a b"),
        ("RELAY_RATE_LIMIT", "0/min"),
        ("RELAY_ANONYMOUS_RATE_LIMIT", "60"),
        ("RELAY_ANONYMOUS_MAX_STREAMS_PER_USER", "none"),
        ("RELAY_ADDRESS_RATE_LIMIT", "60/day"),
        ("RELAY_TRUSTED_PROXIES", "10.0.0.0/8,proxy.internal"),
        ("RELAY_MAX_STREAMS_PER_USER", "-1"),
        ("RELAY_TOKENS_PER_DAY", "0"),
        ("RELAY_ANONYMOUS_TOKENS_PER_DAY", "5000000000"),
        ("RELAY_DETACHED_GRACE", "soon"),
        ("RELAY_IDLE_TIMEOUT", "60"),
        ("RELAY_DRAIN", "99999999999999999999s"),
    ];
    let faults = read(Mode::Dev, &wrong).unwrap_err();
    for (name, _) in wrong {
        assert!(faults.iter().any(|fault| fault.contains(name)), "{name} in {faults:#?}");
    }
    assert_eq!(faults.len(), wrong.len() + 2 + 4 + 1 + 1, "{faults:#?}");
}

#[test]
fn whole_continents_are_no_proxies() {
    for wide in ["0.0.0.0/0", "::/0", "2.0.0.0/7", "2000::/3", "fc00::/6"] {
        let faults = read(Mode::Dev, &[("RELAY_TRUSTED_PROXIES", wide)]).unwrap_err();
        assert!(faults.len() == 1 && faults[0].contains(wide), "{faults:#?}");
    }
    let own = "10.0.0.0/8,fc00::/7,2400:cb00::/32,203.0.113.7,[2001:db8::1]";
    let config = read(Mode::Dev, &[("RELAY_TRUSTED_PROXIES", own)]).unwrap();
    assert_eq!(config.trusted_proxies.0.len(), 5);
}

#[test]
fn anonymous_users_have_half_of_what_others_have_unless_that_is_set() {
    let allowances = |variables: &[(&str, &str)]| read(Mode::Dev, variables).unwrap().allowances;
    let usual = allowances(&[]);
    assert_eq!((usual.users.streams, usual.anonymous.streams), (4, 2));
    assert_eq!((usual.users.tokens_per_day, usual.anonymous.tokens_per_day), (None, None));
    assert_eq!((usual.anonymous.rate, usual.address), (a_minute(30), a_minute(600)));
    let few = allowances(&[("RELAY_RATE_LIMIT", "1/s"), ("RELAY_MAX_STREAMS_PER_USER", "1")]);
    assert_eq!(few.anonymous, few.users);
    let budget = allowances(&[("RELAY_TOKENS_PER_DAY", "1001")]);
    assert_eq!(budget.anonymous.tokens_per_day, Some(501));
    let alone = allowances(&[("RELAY_ANONYMOUS_TOKENS_PER_DAY", "7")]);
    assert_eq!((alone.users.tokens_per_day, alone.anonymous.tokens_per_day), (None, Some(7)));
    let set = [
        ("RELAY_ANONYMOUS_RATE_LIMIT", "70/min"),
        ("RELAY_ANONYMOUS_MAX_STREAMS_PER_USER", "1"),
        ("RELAY_ADDRESS_RATE_LIMIT", "80/min"),
    ];
    let set = allowances(&set);
    assert_eq!((set.anonymous.rate, set.anonymous.streams), (a_minute(70), 1));
    assert_eq!((set.users, set.address), (usual.users, a_minute(80)));
}

#[test]
fn secrets_are_not_in_faults_or_debug_output() {
    let with_password = "a=https://x.example,b=https://user:canary@y.example/v1";
    let faults = read(Mode::Dev, &[("RELAY_PROVIDERS", with_password)]).unwrap_err();
    assert!(faults[0].contains("RELAY_PROVIDERS") && faults[0].contains("entry 2"), "{faults:?}");
    assert!(!faults[0].contains("canary"), "{faults:?}");
    let master_key = URL_SAFE_NO_PAD.encode([7; 32]);
    let pair = format!("k1:{master_key}");
    let config = read(
        Mode::Dev,
        &[
            ("SUPABASE_JWT_SECRET", SECRET),
            ("OPENAI_API_KEY", "sk-canary"),
            ("RELAY_MASTER_KEYS", &pair),
        ],
    )
    .unwrap();
    assert_eq!(config.provider_keys[0].1.expose_secret(), "sk-canary");
    assert!(config.master_keys.is_some());
    for secret in ["canary", SECRET, &master_key, "7, 7"] {
        assert!(!format!("{config:?}").contains(secret));
    }
    let faults = read(Mode::Dev, &[("SUPABASE_JWT_SECRET", "short-canary")]).unwrap_err();
    assert!(!faults.join("").contains("canary"));
}

#[test]
fn times_have_units() {
    for (text, expected) in
        [("0s", 0), ("500ms", 500), ("2s", 2000), ("15m", 900_000), ("1h", 3_600_000)]
    {
        assert_eq!(parse::duration(text), Some(Duration::from_millis(expected)), "{text}");
    }
    for wrong in ["", "5", "s", "-1s", "1.5s", "1 s", "1d", "9999h"] {
        assert_eq!(parse::duration(wrong), None, "{wrong}");
    }
}

#[test]
fn origins_are_compared_to_the_letter() {
    let config =
        read(Mode::Dev, &[("RELAY_CORS_ORIGINS", "https://app.example.com, https://*.stories.io")])
            .unwrap();
    for allowed in ["https://app.example.com", "https://a.stories.io", "https://a-1.stories.io"] {
        assert!(config.origins.allow(allowed), "{allowed}");
    }
    for refused in [
        "null",
        "",
        "https://app.example.com.evil.io",
        "https://evil-app.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://APP.example.com",
        "https://app.example.com/",
        "https://stories.io",
        "https://a.b.stories.io",
        "https://.stories.io",
        "https://evil.io/.stories.io",
        "https://evil.io#.stories.io",
        "http://localhost:5173",
    ] {
        assert!(!config.origins.allow(refused), "{refused}");
    }
}

#[test]
fn loopback_is_this_machine_and_nothing_that_looks_like_it() {
    let origins = read(Mode::Dev, &[]).unwrap().origins;
    for allowed in [
        "http://localhost:5173",
        "http://127.0.0.1:3000",
        "http://[::1]:8080",
        "https://app.localhost",
    ] {
        assert!(origins.allow(allowed), "{allowed}");
    }
    for refused in [
        "null",
        "http://localhost.evil.io",
        "http://evil-localhost",
        "http://10.0.0.1",
        "http://127.0.0.1@evil.io",
    ] {
        assert!(!origins.allow(refused), "{refused}");
    }
}
