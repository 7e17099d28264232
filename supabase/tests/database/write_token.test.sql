-- relay_finish is the one function that runs as its owner, past row-level security, and that needs no user: whoever holds a
-- write token writes the text of one generation, once. Here is what holds that door: what is no token, what a token does
-- not open, and what users cannot make of rows that they may write by hand.

begin;
select plan(50);
\ir helpers.psql

select pg_temp.two_users();

create function pg_temp.finish(token text, more jsonb default '{}') returns text
language sql stable as $$
  select format('select public.relay_finish(%L::jsonb)', jsonb_build_object('write_token', token, 'outcome', 'complete',
    'content', 'written', 'reasoning', '', 'finish_reason', 'stop', 'usage', null, 'failure', null, 'model', 'm') || more)
$$;

create function pg_temp.variant(id text) returns jsonb
language sql stable as $$
  select to_jsonb(v) from public.relay_variants v where v.id = variant.id::bigint
$$;

-- What the token of the user's running generation does: the one thing that it is for.
create function pg_temp.token(who text) returns text
language sql stable as $$
  select pg_temp.known(who, 'token')
$$;

-- Tokens.
select matches(pg_temp.token('owner'), '^[0-9a-f]{64}$', 'a token has 64 hexadecimal digits');
select isnt(pg_temp.token('owner'), pg_temp.known('owner', 'spent_token'), 'every generation has its own');
select is(
  (select count(*) from public.relay_generations g
    where g.write_token_hash = sha256(convert_to(pg_temp.token('owner'), 'UTF8'))),
  1::bigint, 'the row keeps the hash of the token');
select is(
  array(select t::text from pg_temp.relay_tables() t
    where (xpath('count(//*[contains(., "' || pg_temp.token('owner') || '")])', table_to_xml(t, true, false, '')))[1]::text <> '0'),
  '{}', 'and no row of any table the token itself');

-- What is no token.
select is(pg_temp.attempt('anon', pg_temp.finish(guess)), 'PT404 stream_not_found', 'no token: ' || coalesce(guess, 'null'))
  from unnest(array[null, '', '0', repeat('0', 64), gen_random_uuid()::text, upper(pg_temp.token('owner')),
    pg_temp.token('owner') || ' ', left(pg_temp.token('owner'), 63), pg_temp.known('owner', 'running_stream'),
    encode(sha256(convert_to(pg_temp.token('owner'), 'UTF8')), 'hex'),
    '\x' || encode(sha256(convert_to(pg_temp.token('owner'), 'UTF8')), 'hex')]) guess;
select is(pg_temp.attempt('anon', format('select public.relay_finish(%L)', args)), 'PT400 invalid_request',
    'nothing is written without an outcome: ' || coalesce(args, 'null'))
  from unnest(array[null, '{}', 'null', '[]', '"x"', format('{"write_token": "%s"}', pg_temp.token('owner')),
    format('{"write_token": "%s", "outcome": null}', pg_temp.token('owner')),
    format('{"write_token": "%s", "outcome": "pending"}', pg_temp.token('owner')),
    format('{"write_token": "%s", "outcome": "streaming"}', pg_temp.token('owner'))]) args;
select is(pg_temp.attempt('anon', 'select public.relay_finish(''{"outcome": "complete", "content": "x"}'')'),
  'PT404 stream_not_found', 'nothing is written without a token');

-- A token that was replaced. (A call of relay_begin whose answer was lost is made again, and gets a new one.)
insert into known
  select 'stranger', call || key, value
  from unnest(array['first_', 'second_']) call,
    jsonb_each_text(pg_temp.call('stranger', 'relay_begin', pg_temp.turn('begun-twice',
      pg_temp.reply(pg_temp.known('stranger', 'conversation')::bigint, 'x'))
      || jsonb_build_object('attempt', '00000000-0000-4000-8000-000000000009', 'call', call)) -> 'rows')
  where key in ('variant_id', 'write_token');
select is(pg_temp.known('stranger', 'second_variant_id'), pg_temp.known('stranger', 'first_variant_id'),
  'a call that is repeated begins nothing new');
select is(pg_temp.attempt('anon', pg_temp.finish(pg_temp.known('stranger', 'first_write_token'))), 'PT404 stream_not_found',
  'a token that was replaced is none any more');
select is(pg_temp.attempt('anon', pg_temp.finish(pg_temp.known('stranger', 'second_write_token'))), format(
    'answer: {"message_id": %s, "variant_id": %s}', (pg_temp.variant(pg_temp.known('stranger', 'second_variant_id')) ->> 'message_id'),
    pg_temp.known('stranger', 'second_variant_id')) || ', AND CHANGED ROWS OF OTHERS', 'the new one is one');

-- A token opens its own generation and no other.
create temp table before as
  select to_jsonb(v) as variant from public.relay_variants v where v.id <> pg_temp.known('owner', 'running_variant')::bigint;
select is(pg_temp.call('anon', 'relay_finish', jsonb_build_object('write_token', pg_temp.token('owner'), 'outcome', 'complete',
    'content', 'the end', 'variant_id', pg_temp.known('stranger', 'running_variant'), 'message_id', pg_temp.known('stranger', 'message'),
    'stream_id', pg_temp.known('stranger', 'running_stream'), 'user_id', pg_temp.user_of('stranger'))),
  jsonb_build_object('message_id', pg_temp.known('owner', 'running_message')::bigint,
    'variant_id', pg_temp.known('owner', 'running_variant')::bigint),
  'whoever holds the token writes, and whatever else is said, to its own rows');
select is(pg_temp.variant(pg_temp.known('owner', 'running_variant')) - array['id', 'message_id', 'user_id', 'bot_id', 'created_at', 'model'],
  '{"content": "the end", "reasoning": "", "status": "complete", "finish_reason": null, "usage": null, "error": null, "expires_at": null}',
  'what is not told is empty');
select is(pg_temp.variant(pg_temp.known('owner', 'running_variant')) ->> 'model', 'secret', 'and the model stays the bot''s');
select results_eq(
  format('select to_jsonb(v) from public.relay_variants v where v.id <> %s order by v.id', pg_temp.known('owner', 'running_variant')),
  'select variant from before order by variant -> ''id''', 'no other variant has changed');

-- Once.
create temp table kept as
  select jsonb_agg(to_jsonb(v) order by v.id) as variants, (select jsonb_agg(to_jsonb(c) order by c.id) from public.relay_conversations c)
    as conversations from public.relay_variants v;
select is(pg_temp.call('anon', 'relay_finish', jsonb_build_object('write_token', pg_temp.token('owner'), 'outcome', outcome,
    'content', 'other')),
  jsonb_build_object('message_id', pg_temp.known('owner', 'running_message')::bigint,
    'variant_id', pg_temp.known('owner', 'running_variant')::bigint), 'a token that is used again answers as before: ' || outcome)
  from unnest(array['complete', 'failed', 'refused']) outcome;
select is((select jsonb_agg(to_jsonb(v) order by v.id) from public.relay_variants v), (select variants from kept),
  'a token that is used again writes nothing');
select is((select jsonb_agg(to_jsonb(c) order by c.id) from public.relay_conversations c), (select conversations from kept),
  'and changes no conversation');
select is(pg_temp.attempt(who, pg_temp.finish(pg_temp.known('owner', 'spent_token'))),
    pg_temp.attempt('owner', pg_temp.finish(pg_temp.known('owner', 'spent_token'))), 'and answers everybody the same: ' || who)
  from unnest(array['anon', 'nobody', 'stranger']) who;

-- Rows that users may write by hand. The stranger owns a generation whose token the stranger knows.
create function pg_temp.forged(change text, outcome text default 'refused') returns text
language sql stable as $$
  select format('update public.relay_generations set %s where stream_id = ''own-stream-2''; %s', change,
    pg_temp.finish(pg_temp.token('stranger'), jsonb_build_object('outcome', outcome, 'content', '')))
$$;
select matches(pg_temp.attempt('stranger', pg_temp.forged('previous_head_id = previous_head_id')), '^answer: \{"message_id": null, "variant_id": null\}$',
  'a generation of one''s own can be ended');
select is(pg_temp.attempt('stranger', pg_temp.forged('variant_id = ' || pg_temp.known('owner', name))),
    '23503 insert or update on table "relay_generations" violates foreign key constraint "relay_generations_variant_id_user_id_fkey"',
    'but not be made to write the owner''s: ' || name)
  from unnest(array['variant', 'pending_variant']) name;
select is(pg_temp.attempt('stranger', pg_temp.forged('user_message_id = ' || pg_temp.known('owner', 'plain_message'))),
  '23503 insert or update on table "relay_generations" violates foreign key constraint "relay_generations_user_message_id_user_id_fkey"',
  'nor to remove the owner''s message');
select is(
  pg_temp.attempt('stranger', pg_temp.forged('previous_head_id = ' || pg_temp.known('owner', 'message'))),
  pg_temp.attempt('stranger', pg_temp.forged('previous_head_id = ' || pg_temp.known('nothing', 'message'))),
  'nor to tell whether a message of the owner''s is there');
select matches(pg_temp.attempt('stranger', pg_temp.forged('previous_head_id = ' || pg_temp.known('owner', 'message'))),
  '^answer: \{"message_id": null, "variant_id": null\}$', 'and is ended all the same');
select matches(pg_temp.attempt('stranger', format('update public.relay_generations set user_id = %L where stream_id = ''own-stream-2''',
  pg_temp.user_of('owner'))), '^42501 [^,]*$', 'nor be given to the owner');
select matches(pg_temp.attempt('stranger', format(
    'insert into public.relay_generations (user_id, stream_id, write_token_hash, variant_id) values (%L, ''x'', sha256(''x''), %s); %s',
    user_id, pg_temp.known('owner', 'variant'), pg_temp.finish('x'))), '^(42501|23503) [^,]*$', 'nor a new one be made that is: ' || whose)
  from (values ('the owner''s', pg_temp.user_of('owner')), ('the stranger''s', pg_temp.user_of('stranger'))) u (whose, user_id);

-- A session may make types of its own. If they were taken for those of Postgres, what is run to check their values would
-- run as the function's owner. (A function looks its types up when a session first calls it, and again when it is altered.)
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
