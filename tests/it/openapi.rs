//! The OpenAPI document, held against the real binary: by its routes, and by a fuzzer that calls all of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::provider::{Provider, Script};
use crate::relay::{Answer, OWN_KEY, TestRelay, User};

/// How many stories the fuzzed user has, which it may use up, and what the names of their streams begin with.
const STORIES: usize = 60;
const STREAM: &str = "stream-";

/// Calls to each operation beside those that try the limits of each of its fields, which come to some forty.
const EXAMPLES: &str = "8";

/// Keeps what it is told to, and takes nothing from the machine's settings.
const SETTINGS: &str = r#"
suppress-health-check = ["all"]

[phases.coverage]
generate-duplicate-query-parameters = true

# What one answer has is put into the next request there, and is null at times.
[phases.stateful]
checks.positive_data_acceptance.enabled = false

# Whether these take a good request hangs on what no schema can say: a cursor is opaque, and a bot's and a turn's
# `max_tokens` must fit into `context_size` together with the prompt. A reroll is only of an assistant's message.
[[operations]]
include-operation-id = ["listConversations", "listBots", "createBot", "changeBot", "startStream", "reroll"]
checks.positive_data_acceptance.enabled = false
"#;

async fn document(relay: &TestRelay) -> Value {
    let answer = relay.client().get(relay.url("/openapi.json")).send().await.unwrap();
    Answer::of(answer).await.ok(200)
}

#[tokio::test]
async fn everybody_gets_the_document_that_the_command_prints() {
    let provider = Provider::start().await;
    let origin = "https://app.example.com";
    let relay = TestRelay::with(&provider).env("RELAY_CORS_ORIGINS", origin).start().await;
    let request = relay.client().get(relay.url("/openapi.json")).header(header::ORIGIN, origin);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
    assert_eq!(answer.headers()[header::CACHE_CONTROL], "public, max-age=300");
    assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], origin);
    assert_eq!(answer.text().await.unwrap(), relay.run(&["openapi"]));
    relay.finish().await;
}

#[tokio::test]
async fn every_operation_is_a_route_and_no_route_takes_another_method() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let user = relay.stranger();
    for (path, operations) in document(&relay).await["paths"].as_object().unwrap() {
        let mut described: BTreeSet<_> =
            operations.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        if described.contains("GET") {
            described.insert("HEAD".to_owned());
        }
        let path = path.replace("{id}", "1").replace("{stream_id}", "s");
        let answer = user.send(Method::TRACE, &path, &json!({})).await;
        answer.refused(405, "method_not_allowed");
        let allowed = answer.headers[header::ALLOW].to_str().unwrap().split(',');
        assert_eq!(allowed.map(str::to_owned).collect::<BTreeSet<_>>(), described, "{path}");
    }
    relay.finish().await;
}

/// Complains of a document on its standard input that is no OpenAPI 3.1, or has a schema that is none.
const VALIDATE: &str = r#"
import json, sys
import jsonschema_rs
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

document = json.load(sys.stdin)
for fault in OPENAPI_31_VALIDATOR.iter_errors(document):
    sys.exit(f"{fault.instance_path}: {fault.message}")
for schema in document["components"]["schemas"].values():
    jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
"#;

#[tokio::test]
async fn it_is_openapi_3_1() {
    let provider = Provider::start().await;
    let relay = TestRelay::with(&provider).start().await;
    let document = document(&relay).await;
    let mut broken = [document.clone(), document.clone()];
    broken[0]["paths"]["/healthz"]["get"]["responses"]["200"]["itemSchema"] = json!({});
    broken[1]["components"]["schemas"]["Id"]["type"] = json!("whole");
    for (document, is_well) in [(&document, true), (&broken[0], false), (&broken[1], false)] {
        let mut python = Command::new(tool("python"))
            .args(["-c", VALIDATE])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = python.stdin.take().unwrap();
        stdin.write_all(document.to_string().as_bytes()).await.unwrap();
        drop(stdin);
        let output = python.wait_with_output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), is_well, "{told}");
    }
    relay.finish().await;
}

#[tokio::test]
async fn a_fuzzer_gets_no_answer_that_is_not_described() {
    let provider = Provider::start().await;
    provider
        .always(Script::new().reasoning("hm").token("Once").token(" upon\n").finish("stop").done());
    let relay = TestRelay::with(&provider).env("RELAY_LOG", "info").start().await;
    let user = relay.user().await;
    furnish(&user).await;

    let mut document = document(&relay).await;
    sharpen(&mut document);
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("openapi.json"), document.to_string()).unwrap();
    std::fs::write(folder.path().join("schemathesis.toml"), SETTINGS).unwrap();
    let (is_well, told) = fuzz(folder.path(), &relay.url(""), &user.token).await;
    assert!(is_well, "{told}");
    check_reached(&document, &relay.log());
    relay.finish().await;
}

/// Something for each operation to find. Rows have ids from 1 on.
async fn furnish(user: &User) {
    for at in 1..=STORIES {
        let story = user.conversation().await;
        let stream_id = format!("{STREAM}{at}");
        let turn = json!({"conversation_id": story, "input": "Go.", "stream_id": stream_id});
        let done = user.stream(turn).await.done().await;
        user.bot(json!({"context_size": 100_000, "show_reasoning": at % 2 == 0})).await;
        if at % 4 == 0 {
            let announce = json!({"parent_message_id": done["message_id"]});
            user.post("/v1/reroll", &announce).await.ok(200);
        }
    }
    for provider in ["scripted", "openai", "mistral"] {
        let key = json!({"provider": provider, "key": format!("{OWN_KEY}{provider}")});
        user.post("/v1/keys", &key).await.ok(201);
    }
}

/// Says what is true of this relay and this user beside what is true of all: which ids lead to something, and which
/// providers there are. And that an answer has no field which is not described, which is not promised for ever.
fn sharpen(document: &mut Value) {
    let mut answers = BTreeSet::new();
    collect(document, &document["components"]["responses"], &mut answers);
    for path in document["paths"].as_object().unwrap().values() {
        for operation in path.as_object().unwrap().values() {
            collect(document, &operation["responses"], &mut answers);
        }
    }
    let schemas = &mut document["components"]["schemas"];
    for name in answers {
        close(&mut schemas[name]);
    }
    for name in ["Id", "OptionalId", "OptionalMessageRef"] {
        let known = json!({"type": "integer", "minimum": 1, "maximum": STORIES});
        schemas[name] = json!({"anyOf": [known, schemas[name]]});
    }
    let known = json!({"type": "string", "pattern": format!("^{STREAM}[1-9][0-9]?$")});
    schemas["StreamId"] = json!({"anyOf": [known, schemas["StreamId"]]});
    // Neither `demo`, which takes its time, nor an address, whose refusal does.
    schemas["BotSettings"]["properties"]["provider"] = json!({"enum": ["scripted"]});
    schemas["BotPatch"]["properties"]["provider"] = json!({"enum": ["scripted", null]});
    let key = &mut schemas["NewKey"]["properties"];
    key["provider"] = json!({"enum": ["scripted", "openai", "mistral", "custom"]});
    key["base_url"] = json!({"enum": [null, "", "https://llm.example/v1", "https://9.9.9.9:8443"]});
}

/// Adds the names of all schemas that `part` of the document leads to.
fn collect(document: &Value, part: &Value, names: &mut BTreeSet<String>) {
    match part {
        Value::Object(fields) => {
            let reference = part["$ref"].as_str();
            let name = reference.and_then(|to| to.strip_prefix("#/components/schemas/"));
            if let Some(name) = name.filter(|name| names.insert((*name).to_owned())) {
                collect(document, &document["components"]["schemas"][name], names);
            }
            fields.values().for_each(|field| collect(document, field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(document, item, names)),
        _ => {}
    }
}

/// Lets the objects that the schema describes have no other fields.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// Whether all was well, and what the fuzzer told. It does the same each time, unless `RELAY_TEST_EXAMPLES` says how many
/// calls to each operation there shall be: those are new ones.
async fn fuzz(folder: &Path, url: &str, token: &str) -> (bool, String) {
    let mut command = Command::new(tool("schemathesis"));
    command
        .args(["--config-file", "schemathesis.toml", "run", "openapi.json", "--no-color"])
        .args(["--url", url, "--header", &format!("Authorization: Bearer {token}")])
        .args(["--continue-on-failure", "--request-timeout", "120"]);
    match std::env::var("RELAY_TEST_EXAMPLES") {
        Ok(examples) => command.args(["--max-examples", &examples]),
        Err(_) => command.args(["--max-examples", EXAMPLES, "--generation-deterministic"]),
    };
    let output = command
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), told)
}

/// A command of the fuzzer's own installation.
fn tool(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let tool = target.join("tools/schemathesis-4.32.5/bin").join(name);
    assert!(tool.exists(), "schemathesis is not installed: `./test` does that");
    tool
}

/// What is refused says little of what is done: each operation must have done what it is for.
fn check_reached(document: &Value, log: &str) {
    let mut reached = BTreeSet::new();
    for record in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if record["status"].as_u64().is_some_and(|status| status < 300) {
            let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
            reached.insert((text("method"), text("route")));
        }
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let operation = (method.to_uppercase(), path.clone());
            assert!(reached.contains(&operation), "nothing was done by {operation:?}");
        }
    }
}
