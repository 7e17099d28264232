-- relay_finish is the one function that runs as its owner, past row-level security, and that needs no user: whoever holds
-- a write token writes the text of one generation, once. Here is what holds that door: what is no token, what a token
-- does not open, and what users cannot make of the rows that they may write by hand.

begin;
select plan(50);
\ir helpers.psql
select pg_temp.two_users();

create function pg_temp.finish(token text, more jsonb default '{}') returns text
language sql stable as $$
  select format('select public.relay_finish(%L::jsonb)', jsonb_build_object('write_token', token,
    'outcome', 'complete', 'content', 'written', 'reasoning', '', 'finish_reason', 'stop', 'usage', null,
    'failure', null, 'model', 'm') || more)
$$;

-- What relay_finish answers if the generation has that message and that variant, and was ended so first.
create function pg_temp.rows(message_id bigint, variant_id bigint, outcome text, content text) returns text
language sql immutable as $$
  select jsonb_build_object('message_id', message_id, 'variant_id', variant_id,
    'outcome', outcome, 'content_len', octet_length(content))::text
$$;

-- The token of the owner's running generation, and its hash in hexadecimal digits.
create temp table secrets as
  select token, sha256(convert_to(token, 'UTF8')) as hash, encode(sha256(convert_to(token, 'UTF8')), 'hex') as hex
  from pg_temp.known('owner', 'token') as token;

-- Tokens.

select matches(token, '^[0-9a-f]{64}$', 'a token has 64 hexadecimal digits') from secrets;
select isnt(token, pg_temp.known('owner', 'spent_token'), 'every generation has its own') from secrets;
select is((select count(*) from public.relay_generations join secrets on write_token_hash = hash), 1::bigint,
  'the row keeps the hash of the token');
select is(
  array(select t::text from pg_temp.relay_tables() t, secrets
    where table_to_xml(t, true, false, '')::text like '%' || token || '%'),
  '{}', 'and no row of any table the token itself');

-- What is no token.

select is(pg_temp.attempt('anon', pg_temp.finish(guess)), 'PT404 stream_not_found', 'no token: ' || called)
  from secrets, lateral (values
    ('null', null), ('nothing', ''), ('a digit', '0'), ('zeros', repeat('0', 64)), ('a uuid', gen_random_uuid()::text),
    ('capitals', upper(token)), ('a space more', token || ' '), ('a digit less', left(token, 63)),
    ('the hash', hex), ('the hash as Postgres shows it', '\x' || hex),
    ('the name of the stream', pg_temp.known('owner', 'running_stream'))) g (called, guess);
select is(pg_temp.attempt('anon', 'select public.relay_finish(''{"outcome": "complete", "content": "x"}'')'),
  'PT404 stream_not_found', 'no token: none given');
select is(pg_temp.attempt('anon', format('select public.relay_finish(%L)', args)), 'PT400 invalid_request',
    'no outcome: ' || called)
  from secrets, lateral (values
    ('null', null), ('JSON''s null', 'null'), ('a list', '[]'), ('a text', '"x"'), ('nothing', '{}'),
    ('a token alone', jsonb_build_object('write_token', token)::text),
    ('outcome null', jsonb_build_object('write_token', token, 'outcome', null)::text),
    ('outcome pending', jsonb_build_object('write_token', token, 'outcome', 'pending')::text),
    ('outcome streaming', jsonb_build_object('write_token', token, 'outcome', 'streaming')::text)) a (called, args);

-- A token that was replaced. (A call of relay_begin whose answer was lost is made again, and gets a new one.)

insert into known
  select 'stranger', call || key, value
  from unnest(array['first_', 'second_']) call,
    jsonb_each_text(pg_temp.call('stranger', 'relay_begin',
      pg_temp.turn('begun-twice', pg_temp.reply(pg_temp.id('stranger', 'conversation'), 'x'))
      || jsonb_build_object('attempt', '00000000-0000-4000-8000-000000000009', 'call', call)) -> 'rows')
  where key in ('message_id', 'variant_id', 'write_token');
select is(pg_temp.known('stranger', 'second_variant_id'), pg_temp.known('stranger', 'first_variant_id'),
  'a call that is repeated begins nothing new');
select is(pg_temp.attempt('anon', pg_temp.finish(pg_temp.known('stranger', 'first_write_token'))),
  'PT404 stream_not_found', 'a token that was replaced is none any more');
select is(pg_temp.attempt('stranger', pg_temp.finish(pg_temp.known('stranger', 'second_write_token'))),
  'answer: ' || pg_temp.rows(pg_temp.id('stranger', 'second_message_id'), pg_temp.id('stranger', 'second_variant_id'),
    'complete', 'written'),
  'the new one is one');

-- A token opens its own generation and no other.

create temp table others as
  select v.* from public.relay_variants v where v.id <> pg_temp.id('owner', 'running_variant');
select is(
  pg_temp.call('anon', 'relay_finish', jsonb_build_object('write_token', token, 'outcome', 'complete', 'content', 'the end',
    'variant_id', pg_temp.id('stranger', 'running_variant'), 'message_id', pg_temp.id('stranger', 'running_message'),
    'stream_id', pg_temp.known('stranger', 'running_stream'), 'user_id', pg_temp.user_of('stranger')))::text,
  pg_temp.rows(pg_temp.id('owner', 'running_message'), pg_temp.id('owner', 'running_variant'), 'complete', 'the end'),
  'whoever holds the token writes to its rows, whatever else is said') from secrets;
select results_eq(
  format('select content, reasoning, status, finish_reason, usage, error, expires_at, model
    from public.relay_variants where id = %s', pg_temp.id('owner', 'running_variant')),
  $$ values ('the end', '', 'complete', null::text, null::jsonb, null::jsonb, null::timestamptz, 'secret') $$,
  'what is not told is empty, and the model is the bot''s');
select set_eq(format('select * from public.relay_variants where id <> %s', pg_temp.id('owner', 'running_variant')),
  'select * from others', 'no other variant has changed');

-- Once.

create temp table kept as
  select (select jsonb_agg(v order by v.id) from public.relay_variants v) as variants,
    (select jsonb_agg(c order by c.id) from public.relay_conversations c) as conversations;
select is(
    pg_temp.call('anon', 'relay_finish',
      jsonb_build_object('write_token', token, 'outcome', outcome, 'content', 'other'))::text,
    pg_temp.rows(pg_temp.id('owner', 'running_message'), pg_temp.id('owner', 'running_variant'), 'complete', 'the end'),
    'a token that is used again answers as before: ' || outcome)
  from secrets, unnest(array['complete', 'failed', 'refused']) outcome;
select is((select jsonb_agg(v order by v.id) from public.relay_variants v), variants, 'and writes nothing') from kept;
select is((select jsonb_agg(c order by c.id) from public.relay_conversations c), conversations,
  'and changes no conversation') from kept;
select is(pg_temp.attempt(who, pg_temp.finish(token)),
    'answer: ' || pg_temp.rows(pg_temp.id('owner', 'running_message'), pg_temp.id('owner', 'running_variant'), 'complete', 'the end'),
    'and answers everybody the same: ' || who)
  from secrets, unnest(array['anon', 'nobody', 'stranger', 'owner']) who;

-- What users may write by hand. The stranger owns a generation, knows its token, and ends it after a change.

create function pg_temp.forged(change text) returns text
language sql stable as $$
  select format('update public.relay_generations set %s where stream_id = ''own-stream-2''; %s', change,
    pg_temp.finish(pg_temp.known('stranger', 'token'), '{"outcome": "refused"}'))
$$;
select is(pg_temp.attempt('stranger', pg_temp.forged('previous_head_id = previous_head_id')),
  'answer: ' || pg_temp.rows(null, null, 'refused', 'written'), 'a generation of one''s own can be ended');
select is(pg_temp.attempt('stranger', pg_temp.forged('variant_id = ' || pg_temp.id('owner', name))),
    '23503 insert or update on table "relay_generations" violates foreign key constraint '
      || '"relay_generations_variant_id_user_id_fkey"', 'but not be made to write the owner''s ' || name)
  from unnest(array['variant', 'pending_variant']) name;
select is(pg_temp.attempt('stranger', pg_temp.forged('user_message_id = ' || pg_temp.id('owner', 'plain_message'))),
  '23503 insert or update on table "relay_generations" violates foreign key constraint '
    || '"relay_generations_user_message_id_user_id_fkey"', 'nor to remove the owner''s message');
select is(pg_temp.attempt('stranger', pg_temp.forged('previous_head_id = ' || pg_temp.id(whose, 'message'))),
    'answer: ' || pg_temp.rows(null, null, 'refused', 'written'), 'nor to tell whether a message of the owner''s is there: ' || whose)
  from unnest(array['owner', 'nothing']) whose;
select matches(
  pg_temp.attempt('stranger', format('update public.relay_generations set user_id = %L where stream_id = ''own-stream-2''',
    pg_temp.user_of('owner'))), '^42501 [^,]*$', 'nor be given to the owner');
select matches(
    pg_temp.attempt('stranger', format(
      'insert into public.relay_generations (user_id, stream_id, write_token_hash, variant_id) values (%L, %L, %L, %s); %s',
      pg_temp.user_of(whose), 'x', sha256('x'), pg_temp.id('owner', 'variant'), pg_temp.finish('x'))),
    '^(42501|23503) [^,]*$', 'nor can one be made that writes the owner''s, in the name of the ' || whose)
  from unnest(array['owner', 'stranger']) whose;

-- A session may make types of its own. If they were taken for those of Postgres, what is run to check their values would
-- run as the function's owner. (A function looks its types up when a session first calls it, and when it was altered.)

alter function public.relay_finish(jsonb) cost 100;
create function pg_temp.intrusion() returns text
language sql immutable as $$
  select 'create function pg_temp.intruder() returns boolean language plpgsql as
      ''begin raise exception ''''ran as %'''', current_user; end'';'
    || string_agg(format('create domain pg_temp.%I as pg_catalog.%1$I check (pg_temp.intruder());', type), '')
    || 'select public.relay_finish(''{"write_token": "none", "outcome": "complete"}'')'
  from unnest(array['text', 'bytea', 'bool', 'jsonb']) type
$$;
select is(pg_temp.attempt('stranger', pg_temp.intrusion()), 'PT404 stream_not_found',
  'a session''s own types are not taken for those of Postgres');

select * from finish(true);
rollback;
