-- Not only the relay calls the functions: whoever has a token can, with whatever arguments. What is missing or wrong is
-- refused and changes nothing, a generation is never begun twice, and no row can be left that a function stumbles over.

begin;
\ir helpers.psql
select pg_temp.two_users();

create temp table nonsense as
  select p.proname as function, args
  from pg_proc p, unnest(array[null, 'null', '[]', '"x"', '0', '{}',
    '{"id": "x", "message_id": "x", "limit": "x", "outcome": "x", "stream_id": "x y", "place": "x", "settings": "x"}',
    '{"id": 1.5, "message_id": 1e30, "limit": 1e30, "place": {"kind": "reply", "conversation_id": []}, "settings": []}',
    '{"id": 9223372036854775807, "message_id": -1, "limit": -1, "place": {"kind": "reroll", "message_id": 0}}']) args
  where p.pronamespace = 'public'::regnamespace and p.proname like 'relay\_%';

select plan(41 + (select count(*) from nonsense)::int);

select matches(pg_temp.attempt('stranger', format('select public.%I(%L)', function, args)),
    '^(PT4\d\d [a-z_]+|22\w{3} [^,]*|235(02|14) [^,]*|answer: ((?!, AND ).)*)$',
    function || ' with ' || coalesce(args, 'null'))
  from nonsense;

-- Beginning.

create function pg_temp.begun(changed jsonb) returns text
language sql volatile as $$
  select pg_temp.attempt('owner', format('select public.relay_begin(%L::jsonb)',
    pg_temp.turn('new', pg_temp.reply(pg_temp.id('owner', 'conversation'), 'x')) || changed))
$$;
select matches(pg_temp.begun('{}'), '^answer: .*"write_token"', 'the turn that is changed below would be a good one');
select is(pg_temp.begun(changed::jsonb), 'PT400 invalid_request', 'no turn: ' || changed)
  from unnest(array['{"stream_id": null}', '{"fingerprint": null}', '{"expires_at": null}', '{"place": null}',
    '{"place": {}}', '{"place": {"kind": null}}', '{"place": {"kind": "other"}}']) changed;
select matches(pg_temp.begun(changed::jsonb), '^(22|23514)', 'no turn: ' || changed)
  from unnest(array['{"stream_id": "a b"}', '{"stream_id": ""}', '{"expires_at": "soon"}', '{"attempt": "x"}',
    '{"bot_id": "x"}']) changed;
select matches(
    pg_temp.begun(changed::jsonb || jsonb_build_object('stream_id', pg_temp.known('owner', 'running_stream'))),
    '^answer: \{"existing": \{.*"status": "streaming"', 'what runs is not begun again: ' || changed)
  from unnest(array['{}', '{"attempt": null}', '{"attempt": "00000000-0000-4000-8000-000000000009"}']) changed;
select is(pg_temp.begun(jsonb_build_object('fingerprint', 'two', 'stream_id', pg_temp.known('owner', stream))),
    'PT409 stream_id_reused', 'nor another turn under its name: ' || stream)
  from unnest(array['stream', 'running_stream']) stream;
select is(pg_temp.begun(jsonb_build_object('stream_id', pg_temp.known('owner', 'announced_stream'))),
  'PT409 stream_id_reused', 'the name of an announced reroll is for that alone');

-- Lists.

select is(pg_temp.attempt('owner', format('select public.%I(%L)', function, args)), 'PT400 invalid_request',
    function || ' ' || args)
  from unnest(array['relay_list_conversations', 'relay_list_bots']) function,
    unnest(array['{}', '{"limit": 0}', '{"limit": 2, "after": "nonsense"}']) args;

-- The path: its last text, however long, and of those above as many as fit.

create temp table path (at int primary key, content text, id bigint);
do $$
declare
  step record;
  above bigint;
begin
  for step in select * from unnest(array['aaaa', 'c', 'bb', null]) with ordinality u (content, at) loop
    insert into public.relay_messages (user_id, conversation_id, parent_id, role)
      values (pg_temp.user_of('owner'), pg_temp.id('owner', 'plain_conversation'), above, 'user') returning id into above;
    if step.content is not null then
      perform pg_temp.call('owner', 'relay_write_variant',
        jsonb_build_object('message_id', above, 'content', step.content));
    end if;
    insert into path values (step.at, step.content, above);
  end loop;
end
$$;
select is(
    pg_temp.attempt('owner', format(
      'select string_agg(value ->> ''content'', ''|'') from jsonb_array_elements(relay.path_above(%L, %s, %s))',
      pg_temp.user_of('owner'), id, room)),
    'answer: ' || expected, format('the path to message %s with room for %s', p.at, room))
  from (values (4, 7, 'aaaa|c|bb'), (4, 6, 'c|bb'), (4, 3, 'c|bb'), (4, 2, 'bb'), (4, 1, 'bb'), (3, 0, 'bb'),
    (1, 0, 'aaaa')) p (at, room, expected) join path using (at);

-- Rows that would make a function walk in a circle, or wait for ever, or write to another's variant.

select matches(
    pg_temp.attempt('owner', format('update public.relay_messages set parent_id = %s where id = %s returning id', below.id, above.id)),
    '^42501 ', 'no message is moved below itself')
  from path above, path below where above.at = 1 and below.at = 4;
select matches(
    pg_temp.attempt('owner', format('insert into public.relay_messages (user_id, conversation_id, parent_id, role) values %s
      returning id', replace(replace(made, '$next', (last_value + 1)::text), '$after', (last_value + 2)::text))),
    '^42501 new row violates row-level security policy', 'nor made there: ' || called)
  from public.relay_messages_id_seq, lateral (
    select format('(%L, %s, $next, ''user'')', pg_temp.user_of('owner'), pg_temp.id('owner', 'plain_conversation'))) o (one),
    lateral (values ('its own parent', one), ('two that are each other''s', replace(one, '$next', '$after') || ', ' || one))
      m (called, made);
select throws_ok(format('update public.relay_variants set status = ''streaming'', expires_at = null where id = %s',
  pg_temp.id('owner', 'variant')), '23514', null, 'nothing streams without an end');
select throws_ok(format('insert into public.relay_generations (user_id, stream_id, variant_id) values (%L, ''x'', %s)',
  pg_temp.user_of('owner'), pg_temp.id('owner', 'variant')), '23505', null, 'a variant has one generation');

-- Ending. A reader may have moved the head to a message that comes to nothing.

select is(
  pg_temp.call('owner', 'relay_patch_conversation', jsonb_build_object('id', pg_temp.id('owner', 'running_conversation'),
    'patch', jsonb_build_object('head_id', pg_temp.id('owner', 'running_message')))) ->> 'head_id',
  pg_temp.known('owner', 'running_message'), 'the head may be a message that is being written');
insert into public.relay_generations (user_id, attempt, ended_at, result)
  select pg_temp.user_of(whose), attempt::uuid, now() - age::interval, '{}'
  from (values ('owner', '00000000-0000-4000-8000-000000000001', '8 days'),
    ('owner', '00000000-0000-4000-8000-000000000002', '6 days'),
    ('stranger', '00000000-0000-4000-8000-000000000003', '8 days')) g (whose, attempt, age);
select is(
  pg_temp.call('anon', 'relay_finish',
    jsonb_build_object('write_token', pg_temp.known('owner', 'token'), 'outcome', 'failed')),
  '{"message_id": null, "variant_id": null, "outcome": "failed", "content_len": 0}', 'a failure without a text leaves nothing');
select is((select head_id from public.relay_conversations where id = pg_temp.id('owner', 'running_conversation')),
  pg_temp.id('owner', 'running_question'), 'a head that was there moves up');
select is(
  array(select right(attempt::text, 1) from public.relay_generations where ended_at < now() - interval '5 days' order by 1),
  array['2', '3'], 'answers that nobody asks for any more are cleared away, the same user''s and no others');

select * from finish(true);
rollback;
