-- Who gets what from each function of the contract: the owner what they ask for, and everybody else nothing, not even
-- the knowledge whether there is something. Each case is tried with rows that are another user's and with rows that are
-- not there, and the two answers have to be the same.

begin;
\ir helpers.psql
select pg_temp.two_users();

-- `$name` is a row of the owner, or none; `$own_name` is a row of the caller; helpers.psql knows them by these names.
-- `refused` is what the stranger is told; null where no row is named, so that there is nothing to refuse.
create temp table cases (
  function text,
  called text,
  args text,
  refused text,
  primary key (function, called)
);

insert into cases
  select 'relay_begin', called,
    pg_temp.turn('new-stream', '{}') || jsonb_build_object('place', place::jsonb) || more::jsonb, refused
  from (values
    ('a reply', '{"kind": "reply", "conversation_id": "$conversation", "input": "x"}', '{}',
      'PT404 conversation_not_found'),
    ('a reply under a message',
      '{"kind": "reply", "conversation_id": "$own_conversation", "parent_id": "$message", "input": "x"}', '{}',
      'PT404 message_not_found'),
    ('a reply without input', '{"kind": "reply", "conversation_id": "$own_conversation", "parent_id": "$message"}', '{}',
      'PT404 message_not_found'),
    ('a reroll', '{"kind": "reroll", "message_id": "$message"}', '{}', 'PT404 message_not_found'),
    ('a reroll by stream', '{"kind": "reroll", "message_stream_id": "$stream"}', '{}', 'PT404 message_not_found'),
    ('an announced variant', '{"kind": "announced", "variant_id": "$pending_variant"}',
      '{"stream_id": "$announced_stream"}', 'PT404 variant_not_found'),
    ('a named bot', '{"kind": "reply", "conversation_id": "$own_conversation", "input": "x"}', '{"bot_id": "$bot"}',
      'PT403 bot_not_found'),
    ('a named bot and no place', '{"kind": "nowhere"}', '{"bot_id": "$bot"}', 'PT403 bot_not_found'),
    ('no place', '{"kind": "nowhere"}', '{}', null)) as c (called, place, more, refused);

insert into cases values
  ('relay_finish', 'the hash for the token', '{"write_token": "$hash", "outcome": "complete"}', 'PT404 stream_not_found'),
  ('relay_finish', 'the stream for the token', '{"write_token": "$running_stream", "outcome": "complete"}',
    'PT404 stream_not_found'),
  ('relay_find_stream', '', '{"stream_id": "$stream"}', 'answer: null'),
  ('relay_announce_reroll', 'by message', '{"message_id": "$message"}', 'PT404 message_not_found'),
  ('relay_announce_reroll', 'by stream', '{"message_stream_id": "$stream"}', 'PT404 message_not_found'),
  ('relay_announce_reroll', 'in a conversation', '{"message_id": "$own_message", "conversation_id": "$conversation"}',
    'PT404 message_not_found'),
  ('relay_list_conversations', '', '{"limit": 100}', null),
  ('relay_create_conversation', 'bound to a bot', '{"title": "x", "bot_id": "$bot"}', 'PT403 bot_not_found'),
  ('relay_create_conversation', 'unbound', '{"title": "x"}', null),
  ('relay_tree', '', '{"id": "$conversation"}', 'PT404 conversation_not_found'),
  ('relay_patch_conversation', 'the title', '{"id": "$conversation", "patch": {"title": "x"}}',
    'PT404 conversation_not_found'),
  ('relay_patch_conversation', 'nothing', '{"id": "$conversation", "patch": {}}', 'PT404 conversation_not_found'),
  ('relay_patch_conversation', 'the bot', '{"id": "$own_conversation", "patch": {"bot_id": "$bot"}}',
    'PT403 bot_not_found'),
  ('relay_patch_conversation', 'the head', '{"id": "$own_conversation", "patch": {"head_id": "$message"}}',
    'PT404 message_not_found'),
  ('relay_delete_conversation', '', '{"id": "$plain_conversation"}', 'PT404 conversation_not_found'),
  ('relay_select_variant', 'of a message', '{"message_id": "$message", "variant_id": "$variant"}',
    'PT404 message_not_found'),
  ('relay_select_variant', 'of another message', '{"message_id": "$own_message", "variant_id": "$variant"}',
    'PT404 variant_not_found'),
  ('relay_write_variant', '', '{"message_id": "$message", "content": "x"}', 'PT404 message_not_found'),
  ('relay_delete_message', '', '{"message_id": "$plain_message"}', 'PT404 message_not_found'),
  ('relay_list_bots', '', '{"limit": 100}', null),
  ('relay_read_bot', '', '{"id": "$bot"}', 'PT403 bot_not_found'),
  ('relay_create_bot', '', '{"settings": {"name": "x", "provider": "demo", "model": "x", "system_prompt": "",
    "context_size": 1, "show_reasoning": false, "is_default": false}}', null),
  ('relay_update_bot', '', '{"id": "$bot", "settings": {"name": "x"}}', 'PT403 bot_not_found'),
  ('relay_delete_bot', '', '{"id": "$bot"}', 'PT403 bot_not_found'),
  ('relay_list_keys', '', '{}', null),
  ('relay_put_key', '', '{"provider": "demo", "origin": "https://$stream", "last4": "", "sealed": "x"}', null),
  ('relay_reseal_key', '', '{"id": "$key", "old": "$sealed", "new": "x"}', 'PT404 key_not_found'),
  ('relay_delete_key', '', '{"id": "$key"}', 'PT404 key_not_found'),
  ('relay_version', '', '{}', null);

insert into known
  select u.who, 'hash', encode(sha256(convert_to(k.value, 'UTF8')), 'hex')
  from (values ('owner'), ('stranger'), ('nothing')) u (who) join known k on k.who = u.who and k.name = 'token';

-- What comes of the case if `who` tries it on `whose` rows. Who has no rows of their own names the owner's.
create function pg_temp.tried(who text, c cases, whose text) returns text
language sql volatile as $$
  select pg_temp.attempt(who, format('select public.%I(%L::jsonb)', c.function, pg_temp.bound(c.args,
    case when who in ('owner', 'stranger') then who else 'owner' end, whose)))
$$;

-- relay_finish and relay_version answer without a user.
create function pg_temp.needs_user(function text) returns boolean
language sql immutable as $$
  select function not in ('relay_finish', 'relay_version')
$$;

select plan(11 + (select 4 * count(*) + count(refused) from cases)::int);

select is(
  array(select p.proname::text from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname like 'relay\_%'
      and not exists (select from cases c where c.function = p.proname)),
  '{}', 'every function of the contract has a case here');

-- The owner. What is asked for is there, or the refusals below would say nothing.
select case when function = 'relay_finish' then
      is(pg_temp.tried('owner', c, 'owner'), refused, format('owner: %s %s', function, called))
    else
      matches(pg_temp.tried('owner', c, 'owner'), '^answer: [{n]', format('owner: %s %s', function, called))
    end
  from cases c;

-- A stranger, to whom rows of others and rows that are not there are the same.
select is(pg_temp.tried('stranger', c, 'owner'), pg_temp.tried('stranger', c, 'nothing'),
    format('stranger: not theirs and not there are the same: %s %s', function, called))
  from cases c where refused is not null;
select case when refused is not null then
      is(pg_temp.tried('stranger', c, 'owner'), refused, format('stranger: %s %s', function, called))
    else
      doesnt_match(pg_temp.tried('stranger', c, 'owner'), ', AND |^[^a]', format('stranger: %s %s', function, called))
    end
  from cases c;

-- A token without a user.
select is(pg_temp.tried('nobody', c, 'owner'),
    case when pg_temp.needs_user(function) then 'PT401 invalid_token' else pg_temp.tried('stranger', c, 'owner') end,
    format('nobody: %s %s', function, called))
  from cases c;

-- No token.
select is(pg_temp.tried('anon', c, 'owner'),
    case when pg_temp.needs_user(function) then '42501 permission denied for function ' || function
      else pg_temp.tried('stranger', c, 'owner') end,
    format('anon: %s %s', function, called))
  from cases c;

-- What the lists of a stranger have is the stranger's, and the names of streams are each user's own.
select is(
  array(select value ->> 'id'
    from jsonb_array_elements(pg_temp.call('stranger', 'relay_list_conversations', '{"limit": 100}') -> 'data') order by 1),
  array(select value from known where who = 'stranger' and name like '%conversation' order by 1),
  'a stranger''s list of conversations has the stranger''s');
select is(
  array(select value ->> 'id'
    from jsonb_array_elements(pg_temp.call('stranger', 'relay_list_bots', '{"limit": 100}') -> 'data')),
  array[pg_temp.known('stranger', 'bot')], 'a stranger''s list of bots has the stranger''s');
select is(
  array(select value ->> 'id' from jsonb_array_elements(pg_temp.call('stranger', 'relay_list_keys', '{}') -> 'data')),
  array[pg_temp.known('stranger', 'key')], 'a stranger''s list of keys has the stranger''s');
select is(
    array(select value ->> 'sealed' from jsonb_array_elements(pg_temp.call(who, 'relay_begin',
      pg_temp.turn('with-keys', '{"kind": "nowhere"}')) -> 'keys')),
    array[pg_temp.known(who, 'sealed')], 'a turn gets the keys of its user: ' || who)
  from unnest(array['owner', 'stranger']) who;
select matches(
    pg_temp.attempt('stranger', format('select public.relay_begin(%L::jsonb)',
      pg_temp.turn(pg_temp.known('owner', name), pg_temp.reply(pg_temp.id('stranger', 'conversation'), 'x')))),
    '^answer: .*"write_token": "[0-9a-f]{64}"((?!, AND ).)*$', 'the name of another''s stream is free: ' || name)
  from unnest(array['stream', 'announced_stream', 'running_stream']) name;

-- PostgREST calls what is stable in a transaction that cannot write.
select is(
  array(select function || ' ' || called
    from cases c join pg_proc p on p.proname = c.function and p.pronamespace = 'public'::regnamespace
    where p.provolatile <> 'v' and pg_temp.attempt('owner',
      format('set local transaction_read_only = on; select public.%I(%L)', function, pg_temp.bound(args, 'owner', 'owner')))
      not like 'answer: %'),
  '{}', 'functions that are stable do not write');

-- The helpers are no way around: they run as their caller, under the same policies.
select is(
  array(select called || ': ' || outcome
    from (values
      ('message_of', '(%1$L, %2$L)', 'message'),
      ('conversation_of', '(%1$L, %2$L)', 'conversation'),
      ('bot_of', '(%1$L, %2$L)', 'bot'),
      ('keys_for', '(%1$L, (select b from public.relay_bots b))', 'bot'),
      ('path_above', '(%1$L, %2$L, 9999)', 'message'),
      ('saved_stream', '(%1$L, %2$L)', 'stream'),
      ('insert_message', '(%1$L, %2$L, null, ''user'')', 'conversation'),
      ('insert_variant', '(%1$L, %2$L, ''x'', ''complete'')', 'message'),
      ('give_write_token', '((select id from public.relay_generations where stream_id = %2$L), null)', 'running_stream'))
        as h (called, args, name),
    lateral (select pg_temp.attempt('stranger', 'select relay.' || called
      || format(args, pg_temp.user_of('owner'), pg_temp.known('owner', name)))) as o (outcome)
    where outcome !~ '^(PT40[34] \w*|answer: (null|\[\]|[0-9a-f]{64})|42501 new row violates row-level security [^,]*)$'),
  '{}', 'a stranger who calls the helpers with the owner''s id gets nothing');

select * from finish(true);
rollback;
