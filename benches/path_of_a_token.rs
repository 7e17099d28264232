//! What the steps of a token's path cost, each by itself, so that a regression of one is seen.
//!
//! `cargo bench --bench path_of_a_token`; with `-- --save-baseline before` and `-- --baseline before` around a change.

#![expect(clippy::unwrap_used, reason = "a benchmark ends at what it does not expect")]

use std::hint::black_box;
use std::task::{Context, Waker};

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use secrecy::SecretString;
use storytellr_relay::clock;
use storytellr_relay::event::{BotRef, Cursor, Kind, Start};
use storytellr_relay::http::sse;
use storytellr_relay::id::UserId;
use storytellr_relay::journal::file::JournalFile;
use storytellr_relay::journal::memory::MemoryJournal;
use storytellr_relay::journal::{Claim, Follower, Journal, Opening, Piece, Records, View, Writer};
use storytellr_relay::outbox::Name;
use storytellr_relay::provider::Batch;
use storytellr_relay::provider::chunk;
use storytellr_relay::provider::pattern::Chunks;
use storytellr_relay::provider::sse::Decoder;
use uuid::Uuid;

/// A token's chunk as OpenAI sends it.
const DATA: &str = r#"{"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"gpt","system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":{"content":" upon"},"logprobs":null,"finish_reason":null}]}"#;

/// Tokens of one measurement, where one alone would be too short.
const TOKENS: usize = 1_000;

/// Generations whose text is copied together.
const GENERATIONS: usize = 500;

fn owner() -> UserId {
    UserId(Uuid::from_bytes([1; 16]))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// A writer of a generation that has begun.
fn writer() -> Writer {
    let stream_id: storytellr_relay::id::StreamId = "stream".parse().unwrap();
    let opening = Opening {
        owner: owner(),
        stream_id: stream_id.clone(),
        fingerprint: String::new(),
        started_at: clock::now(),
        write_token: None,
    };
    let claim = runtime().block_on(MemoryJournal::default().claim(opening)).unwrap();
    let Claim::New(writer) = claim else { panic!("a new name is taken") };
    writer.open(Start {
        stream_id,
        conversation_id: None,
        message_id: None,
        variant_id: None,
        user_message_id: None,
        bot: BotRef { id: None, name: String::new() },
        model: String::new(),
    });
    writer
}

fn provider(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("provider");
    let stream = format!("data: {DATA}\n\n").repeat(TOKENS);
    group.throughput(Throughput::Elements(TOKENS as u64));
    // Pieces as they come out of a socket, which cut events anywhere.
    group.bench_function("decode 1,000 events", |bencher| {
        bencher.iter(|| {
            let (mut decoder, mut events) = (Decoder::new(), 0);
            for piece in black_box(stream.as_bytes()).chunks(1_460) {
                decoder.push(piece, |event| events += event.data.len()).unwrap();
            }
            events
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse a chunk", |bencher| {
        bencher.iter(|| chunk::parse(black_box(DATA)).unwrap().content.len());
    });
    group.bench_function("parse another chunk of the same stream", |bencher| {
        let mut chunks = Chunks::default();
        bencher.iter(|| chunks.read(black_box(DATA)).unwrap().content.len());
    });
    group.bench_function("clean a token", |bencher| {
        let mut batch = Batch::new(false);
        bencher.iter(|| {
            batch.clear();
            batch.push(Kind::Token, black_box(" upon"));
        });
    });
    group.finish();
}

fn journal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Elements(TOKENS as u64));
    group.bench_function("append 1,000 tokens", |bencher| {
        bencher.iter_batched_ref(
            writer,
            |writer| {
                for _ in 0..TOKENS {
                    writer.append([(Kind::Token, black_box(" upon"))].into_iter()).unwrap();
                }
            },
            BatchSize::SmallInput,
        );
    });
    let (mut context, mut seen) = (Context::from_waker(Waker::noop()), Cursor::default());
    group.bench_function("append and follow 1,000 tokens", |bencher| {
        bencher.iter_batched_ref(
            || {
                let writer = writer();
                let follower = Follower::new(writer.log(), None);
                (writer, follower)
            },
            |(writer, follower)| {
                for _ in 0..TOKENS {
                    writer.append([(Kind::Token, black_box(" upon"))].into_iter()).unwrap();
                    while follower.poll(&mut context, |at, _| seen = at).is_ready() {}
                }
                black_box(seen);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn disk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("disk");
    let runtime = runtime();
    // Without a disk: what the processor does of it.
    let file = JournalFile::open_in_memory().unwrap();
    let records: Vec<_> = (0..GENERATIONS)
        .map(|at| {
            let stream_id = format!("stream-{at}").parse().unwrap();
            let name = Name { owner: owner(), stream_id };
            let write_token = SecretString::from(format!("token-{at}"));
            runtime.block_on(file.begin(&name, &write_token)).unwrap().0
        })
        .collect();
    let mut begin = 0;
    group.throughput(Throughput::Elements(GENERATIONS as u64));
    group.bench_function("copy the text of 500 generations", |bencher| {
        bencher.iter_batched(
            || {
                let text = " upon a time there was".to_owned();
                begin += text.len();
                let piece = |record| Piece { record, begin, kind: Kind::Token, text: text.clone() };
                records.iter().copied().map(piece).collect()
            },
            |pieces| runtime.block_on(file.append(pieces, Vec::new())).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn reader(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reader");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode a token", |bencher| {
        let mut frame = BytesMut::new();
        bencher.iter(|| {
            frame.clear();
            sse::encode(&mut frame, black_box(4_711), &View::Text(Kind::Token, black_box(" upon")));
        });
    });
    group.finish();
}

criterion_group!(path, provider, journal, disk, reader);
criterion_main!(path);
