//! A real server that speaks PostgREST's protocol over a database of the tests, and calls to it as anybody may make them.

use std::path::Path;
use std::sync::OnceLock;

use http::{Method, header};
use serde_json::{Value, json};

use crate::database::{Database, Recipe, Server, free_port};
use crate::relay::SECRET;

const POSTGREST: Recipe = Recipe {
    prepare: "true",
    serve: r#"exec "$SERVER""#,
    probe: r#"curl -sf -o /dev/null -H 'content-type: application/json' -d '{}' "http://127.0.0.1:$PGRST_SERVER_PORT/rpc/relay_version""#,
    end_by: "TERM",
};

/// A PostgREST-compatible server.
pub(crate) struct Postgrest {
    port: u16,
    client: reqwest::Client,
    _server: Server,
}

impl Postgrest {
    /// One over the database, which must have been migrated.
    pub(crate) fn on(database: &Database) -> Self {
        let port = free_port();
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let binary = target.join("tools/postrust-3.1.0/bin/postrust");
        let env = [
            ("SERVER", binary.to_str().unwrap()),
            ("PGRST_COMPAT_MODE", "true"),
            ("PGRST_DB_URI", &database.url("authenticator")),
            ("PGRST_DB_SCHEMAS", "public"),
            ("PGRST_DB_ANON_ROLE", "anon"),
            ("PGRST_DB_POOL", "20"),
            ("PGRST_JWT_SECRET", SECRET),
            ("PGRST_SERVER_HOST", "127.0.0.1"),
            ("PGRST_SERVER_PORT", &port.to_string()),
        ];
        let server = Server::start(&POSTGREST, &env, &[]);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { port, client, _server: server }
    }

    /// The port of the one over the database that tests share.
    pub(crate) async fn shared() -> u16 {
        static SHARED: OnceLock<Postgrest> = OnceLock::new();
        let database = Database::shared().await;
        SHARED.get_or_init(|| Self::on(&database)).port
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What it answers to a request with that token, or with none: the status and the JSON.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> (u16, Value) {
        let mut request = self
            .client
            .request(method, format!("http://127.0.0.1:{}{path}", self.port))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_string());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(json!(null)))
    }
}
