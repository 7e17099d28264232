//! The doors by which fuzzers get in, to parts that nobody else outside of the crate can reach.
//!
//! They are not there in an ordinary build. Each takes whatever bytes it is given and panics where a promise is not kept,
//! which is more than that nothing panics: what is promised stands beside the part that promises it, in a `fuzzing` of
//! its own. The targets are in `fuzz/`; what they have found worth keeping, a test here runs with every `cargo test`.

macro_rules! doors {
    ($($(#[$doc:meta])* $name:ident => $enter:path,)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Panics
            /// If it is not so.
            pub fn $name(input: &[u8]) {
                $enter(input);
            }
        )*

        #[cfg(test)]
        const DOORS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name)),*];
    };
}

doors! {
    /// The decoder of server-sent events gives what the standard says, however its bytes are cut.
    sse => crate::provider::sse::fuzzing::decode,
    /// What a provider says becomes clean text, or an error without a key in it.
    chunk => crate::provider::fuzzing::answer,
    /// A response over HTTP/1.1 is the same however its bytes are cut.
    response => crate::provider::fuzzing::response,
    /// Only a token that was signed, and says what it must, stands for somebody.
    token => crate::auth::fuzzing::token,
    /// No key of a key set can be signed for by everybody.
    key_set => crate::auth::fuzzing::key_set,
    /// An address that a user may enter is what every parser takes it for.
    base_url => crate::provider::fuzzing::base_url,
    /// An address that passes for public is public.
    address => crate::provider::fuzzing::address,
    /// Readers who come and go put exactly the text together.
    follow => crate::http::fuzzing::follow,
    /// A body is taken as it should be, or refused without a word of it.
    body => crate::http::fuzzing::body,
    /// What is in the journal's file is read, or found unreadable.
    journal_batch => crate::journal::file::fuzzing::batch,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn listed(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn what_fuzzers_found_worth_keeping_is_as_it_should_be() {
        for (name, enter) in DOORS {
            let corpus = listed(&format!("fuzz/corpus/{name}"));
            assert!(!corpus.is_empty(), "{name} has no corpus");
            for path in corpus {
                let input = fs::read(&path).unwrap();
                let kept = std::panic::catch_unwind(|| enter(&input));
                assert!(kept.is_ok(), "{}", path.display());
            }
        }
    }

    #[test]
    fn every_door_has_a_target_and_a_corpus_and_there_are_no_others() {
        let names = |folder: &str| -> BTreeSet<String> {
            let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
            listed(folder).into_iter().map(stem).collect()
        };
        let doors: BTreeSet<_> = DOORS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names("fuzz/fuzz_targets"), doors);
        assert_eq!(names("fuzz/corpus"), doors);
        let manifest = include_str!("../fuzz/Cargo.toml");
        for door in doors {
            assert!(manifest.contains(&format!("name = \"{door}\"")), "{door} is not built");
        }
    }
}
