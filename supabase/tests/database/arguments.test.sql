-- Not only the relay calls the functions: whoever has a token can, with whatever arguments. What is missing or wrong is
-- refused and changes nothing, a generation is never begun twice, and no row can be left that a function would stumble over.

begin;
\ir helpers.psql
select pg_temp.two_users();

create temp table nonsense as
  select p.proname as function, args
  from pg_proc p, unnest(array[null, 'null', '[]', '"x"', '0', '{}',
    '{"id": "x", "message_id": "x", "limit": "x", "outcome": "x", "stream_id": "x y", "place": "x", "settings": "x"}',
    '{"id": 1.5, "message_id": 1e30, "limit": 1e30, "place": {"kind": "reply", "conversation_id": []}, "settings": []}',
    '{"id": 9223372036854775807, "message_id": -1, "limit": -1, "place": {"kind": "reroll", "message_id": 0}, "settings": {}}']) args
  where p.pronamespace = 'public'::regnamespace and p.proname like 'relay\_%';

select plan(40 + (select count(*) from nonsense)::int);

select matches(pg_temp.attempt('stranger', format('select public.%I(%L)', function, args)),
    '^(PT4\d\d [a-z_]+|22\w{3} [^,]*|235(02|14) [^,]*|answer: ((?!, AND ).)*)$', function || ' with ' || coalesce(args, 'null'))
  from nonsense;

-- relay_begin.

create function pg_temp.begun(who text, changed jsonb) returns text
language sql volatile as $$
  select pg_temp.attempt(who, format('select public.relay_begin(%L::jsonb)',
    pg_temp.turn('new', pg_temp.reply(pg_temp.known(who, 'conversation')::bigint, 'x')) || changed))
$$;
select matches(pg_temp.begun('owner', '{}'), '^answer: .*"write_token"', 'the turn that is changed below would be a good one');
select is(pg_temp.begun('owner', changed), 'PT400 invalid_request', 'no turn: ' || changed::text)
  from unnest(array['{"stream_id": null}', '{"fingerprint": null}', '{"expires_at": null}', '{"place": null}', '{"place": {}}',
    '{"place": {"kind": null}}', '{"place": {"kind": "other"}}']::jsonb[]) changed;
select matches(pg_temp.begun('owner', changed), '^(22|23514)', 'no turn: ' || changed::text)
  from unnest(array['{"stream_id": "a b"}', '{"stream_id": ""}', '{"expires_at": "soon"}', '{"attempt": "x"}', '{"bot_id": "x"}']::jsonb[])
    changed;

select matches(pg_temp.begun('owner', changed || jsonb_build_object('stream_id', pg_temp.known('owner', 'running_stream'))),
    '^answer: \{"existing": \{.*"status": "streaming"', 'what runs is not begun again, whoever asks: ' || changed::text)
  from unnest(array['{}', '{"attempt": null}', '{"attempt": "00000000-0000-4000-8000-000000000009"}']::jsonb[]) changed;
select is(pg_temp.begun('owner', jsonb_build_object('fingerprint', 'two', 'stream_id', pg_temp.known('owner', stream))),
    'PT409 stream_id_reused', 'nor another turn under its name: ' || stream)
  from unnest(array['stream', 'running_stream']) stream;
select is(pg_temp.begun('owner', jsonb_build_object('stream_id', pg_temp.known('owner', 'announced_stream'))), 'PT409 stream_id_reused',
  'the name of an announced reroll is for that alone');

-- Lists.

select is(pg_temp.attempt('owner', format('select public.%I(%L)', function, args)), 'PT400 invalid_request', function || ' ' || args)
  from unnest(array['relay_list_conversations', 'relay_list_bots']) function,
    unnest(array['{}', '{"limit": 0}', '{"limit": 2, "after": "nonsense"}']) args;

-- The path: its last text, however long, and of those above as many as fit.

insert into public.relay_messages (user_id, conversation_id, role)
  values (pg_temp.user_of('owner'), pg_temp.known('owner', 'plain_conversation')::bigint, 'user');
create temp table path as
  select at, null::bigint as id, null::bigint as parent_id, content from unnest(array['aaaa', 'c', 'bb', null]) with ordinality u (content, at);
do $$
declare
  step record;
  above bigint;
  written bigint;
begin
  for step in select * from path order by at loop
    insert into public.relay_messages (user_id, conversation_id, parent_id, role)
      values (pg_temp.user_of('owner'), pg_temp.known('owner', 'plain_conversation')::bigint, above, 'user') returning id into above;
    update path set id = above where at = step.at;
    if step.content is not null then
      perform pg_temp.call('owner', 'relay_write_variant', jsonb_build_object('message_id', above, 'content', step.content));
    end if;
  end loop;
end
$$;
select is(
    pg_temp.attempt('owner', format('select string_agg(value ->> ''content'', ''|'') from jsonb_array_elements(relay.path_above(%L, %s, %s))',
      pg_temp.user_of('owner'), (select id from path where path.at = until), coalesce(room::text, 'null'))),
    'answer: ' || expected, format('a path that ends with text %s and has room for %s', until, room))
  from (values (4, 7, 'aaaa|c|bb'), (4, 6, 'c|bb'), (4, 3, 'c|bb'), (4, 2, 'bb'), (4, 1, 'bb'), (3, 0, 'bb'), (1, 0, 'aaaa')) p (until, room, expected);

-- Rows that would make a function walk in a circle or wait for ever.

select throws_ok(format('update public.relay_messages set parent_id = %s where id = %s', (select id from path where at = 4),
  (select id from path where at = 1)), '23514', null, 'no message is below itself');
select throws_ok(format('insert into public.relay_messages (id, user_id, conversation_id, parent_id, role) overriding system value
  values (9007199254740991, %L, %s, 9007199254740991, ''user'')', pg_temp.user_of('owner'), pg_temp.known('owner', 'plain_conversation')),
  '23514', null, 'nor its own parent');
select throws_ok(format('update public.relay_variants set status = ''streaming'', expires_at = null where id = %s',
  pg_temp.known('owner', 'variant')), '23514', null, 'nothing streams without an end');
select throws_ok(format('insert into public.relay_generations (user_id, stream_id, variant_id) values (%L, ''x'', %s)',
  pg_temp.user_of('owner'), pg_temp.known('owner', 'variant')), '23505', null, 'a variant has one generation');

-- What relay_finish leaves.

select is(pg_temp.call('owner', 'relay_patch_conversation', jsonb_build_object('id', pg_temp.known('owner', 'running_conversation'),
    'patch', jsonb_build_object('head_id', pg_temp.known('owner', 'running_message')))) ->> 'head_id', pg_temp.known('owner', 'running_message'),
  'the head may be a message that is being written');
insert into public.relay_generations (user_id, attempt, ended_at, result)
  values (pg_temp.user_of('owner'), '00000000-0000-4000-8000-000000000001', now() - interval '8 days', '{}'),
    (pg_temp.user_of('owner'), '00000000-0000-4000-8000-000000000002', now() - interval '6 days', '{}'),
    (pg_temp.user_of('stranger'), '00000000-0000-4000-8000-000000000003', now() - interval '8 days', '{}');
select is(pg_temp.call('anon', 'relay_finish', jsonb_build_object('write_token', pg_temp.known('owner', 'token'), 'outcome', 'failed')),
  '{"message_id": null, "variant_id": null}', 'a failure without a text is removed');
select is((select head_id::text from public.relay_conversations where id = pg_temp.known('owner', 'running_conversation')::bigint),
  pg_temp.known('owner', 'running_question'), 'a head that was moved to it moves to what is above');
select is(array(select right(attempt::text, 1) from public.relay_generations where stream_id is null and variant_id is null and ended_at < now() - interval '5 days'
    order by attempt), array['2', '3'], 'the answers that nobody asks for any more are cleared away, the user''s own');

select * from finish(true);
rollback;
