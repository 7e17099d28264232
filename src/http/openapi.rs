//! The API for programs: the OpenAPI document of every route.
//!
//! `openapi.json` is written by hand, because no attribute on a handler says what a store refuses or how a body is read.
//! What keeps it true are tests: those below compare it with the routes and the errors, and in `tests/it/openapi.rs` a fuzzer
//! calls every operation and complains of each answer that the document does not have.

use axum::response::IntoResponse;
use http::header;

/// The document, as JSON.
pub const DOCUMENT: &str = include_str!("openapi.json");

/// It is the same for everybody, and changes with the relay's version alone: who keeps it has an old one for five minutes.
const CACHE_CONTROL: &str = "public, max-age=300";

/// `GET /openapi.json`
pub(super) async fn describe() -> impl IntoResponse {
    let headers =
        [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, CACHE_CONTROL)];
    (headers, DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;
    use crate::error::Code;
    use crate::http::reject;

    /// What any route answers, so that no operation has it.
    const ANYWHERE: [Code; 2] = [Code::RouteNotFound, Code::MethodNotAllowed];

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// What the pointer leads to, from one reference to the next.
    fn find<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let found = document.pointer(reference.strip_prefix('#').unwrap());
                find(document, found.unwrap_or_else(|| panic!("{reference} is nowhere")))
            }
            None => value,
        }
    }

    fn codes(list: &Value) -> BTreeSet<&str> {
        list["enum"].as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect()
    }

    /// The codes of each response of an error, by status.
    fn refusals(document: &Value) -> Vec<(u16, BTreeSet<&str>)> {
        let paths = document["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|path| path.as_object().unwrap().values());
        let responses =
            operations.flat_map(|operation| operation["responses"].as_object().unwrap());
        responses
            .filter_map(|(status, response)| {
                let schema = &find(document, response)["content"]["application/json"]["schema"];
                let code = schema.pointer("/allOf/1/properties/error/properties/code")?;
                Some((status.parse().unwrap(), codes(code)))
            })
            .collect()
    }

    #[test]
    fn every_route_is_described() {
        let routes = include_str!("mod.rs").split(".route(").skip(1);
        let routes: BTreeSet<_> = routes.map(|rest| rest.split('"').nth(1).unwrap()).collect();
        let document = document();
        let described: BTreeSet<_> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn every_error_is_described_where_it_has_its_status() {
        let document = document();
        let mut described: BTreeSet<_> = ANYWHERE.iter().map(|code| code.as_str()).collect();
        for (status, codes) in refusals(&document) {
            for code in &codes {
                let known = Code::of(code).unwrap_or_else(|| panic!("{code} is no code"));
                assert_eq!(reject::status(known), status, "{code}");
            }
            described.extend(codes);
        }
        let schemas = &document["components"]["schemas"];
        assert_eq!(described, codes(&schemas["ErrorCode"]), "in an answer");
        let in_streams = codes(&schemas["Failed"]["properties"]["code"]);
        let all: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(&described | &in_streams, all);
    }

    #[test]
    fn nothing_is_missing_and_nothing_left_over() {
        let document = document();
        let mut used = BTreeSet::new();
        let mut values = vec![&document];
        while let Some(value) = values.pop() {
            if let Some(reference) = value["$ref"].as_str() {
                find(&document, value);
                used.insert(reference.to_owned());
            }
            match value {
                Value::Object(fields) => values.extend(fields.values()),
                Value::Array(items) => values.extend(items),
                _ => {}
            }
        }
        for kind in ["headers", "parameters", "responses", "schemas"] {
            for name in document["components"][kind].as_object().unwrap().keys() {
                assert!(used.contains(&format!("#/components/{kind}/{name}")), "{kind}/{name}");
            }
        }
    }

    #[test]
    fn it_is_of_this_version_and_its_operations_have_names_of_their_own() {
        let document = document();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut names = BTreeMap::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for operation in methods.as_object().unwrap().values() {
                let name = operation["operationId"].as_str().unwrap();
                assert_eq!(names.insert(name, path), None, "{name}");
            }
        }
    }
}
