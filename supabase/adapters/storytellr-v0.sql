-- The database contract over Storytellr's present tables, for an app that keeps its schema.
--
-- The same functions as in `supabase/migrations/`, over `bots`, `conversations`, `messages` and `message_alternatives`.
-- The relay's side does not change, and the rows that are left behind are those that the Python relay left, without its
-- faults: no answer is lost or saved twice, a failure is no complete message, a reroll that came to nothing hides no
-- text, and no key is read from a row. Other columns of the app are not touched: `message_count` and `last_message_at`,
-- which the Python relay did not write, stay the business of whoever keeps them now.
--
-- A story has no branches here. Its order is by time, then id; the parent of a message is the one before it, and the
-- head is the last. What would need a branch, or a row that only the app can make, is refused as `unsupported`.
--
-- Apply it with `psql -f`, or in the SQL editor, as the owner of the tables; again, it changes nothing. It adds a
-- schema that no API exposes, with two small tables for what the app's tables have no columns for. To take it away,
-- apply `storytellr-v0-drop.sql`; how to move to the relay's own tables, `storytellr-v0-move.sql` says.
--
-- These indexes serve the functions. Make those that the app has not got already:
--   create index concurrently on public.messages (conversation_id, t desc nulls last, id desc);
--   create index concurrently on public.messages (user_id, stream_id);
--   create index concurrently on public.message_alternatives (parent_message_id);
--   create index concurrently on public.message_alternatives (user_id, stream_id);

begin;

do $$
begin
  if to_regclass('public.relay_messages') is not null then
    raise exception 'the relay''s own tables are in this database, and their functions have the names of these'
      using hint = 'The relay works on its own tables; nothing has to be done for that. '
        'To move Storytellr''s stories into them, apply supabase/adapters/storytellr-v0-move.sql.';
  end if;
  if to_regclass('public.bots') is null or to_regclass('public.conversations') is null
    or to_regclass('public.messages') is null or to_regclass('public.message_alternatives') is null
  then
    raise exception 'Storytellr''s tables bots, conversations, messages, message_alternatives are not all here'
      using hint = 'For a new database apply supabase/migrations/ instead.';
  end if;
  if row_security_active('public.conversations') or row_security_active('public.messages')
    or row_security_active('public.message_alternatives')
  then
    raise exception 'relay_finish would run as %, from whom row-level security hides the rows of users', current_user
      using hint = 'Apply this as the owner of the tables. If they force row-level security on their owner, as a role '
        'that bypasses it.';
  end if;
end
$$;

create schema if not exists relay_v0;
comment on schema relay_v0 is 'What the relay''s functions need beside Storytellr''s tables. Not for the API.';
revoke all on schema relay_v0 from public, anon, authenticated;
grant usage on schema relay_v0 to authenticated;

-- The message that a generation will write does not exist before its end, and an alternative can be deleted by the app
-- at any time, so these two are looked up and not referenced.
create table if not exists relay_v0.generations (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  stream_id text check (stream_id ~ '^[A-Za-z0-9._-]{1,128}$'),
  fingerprint text,
  attempt uuid,
  write_token_hash bytea unique,
  conversation_id integer references public.conversations (id) on delete cascade,
  message_id integer,
  alternative_id integer unique,
  user_message_id integer,
  is_announced boolean not null default false,
  bot_id integer references public.bots (id) on delete set null,
  model text,
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  status text check (status in ('complete', 'stopped', 'interrupted', 'failed', 'refused')),
  reasoning text not null default '',
  finish_reason text,
  usage jsonb,
  error jsonb,
  result jsonb,
  ended_at timestamptz,
  unique (user_id, stream_id),
  check ((fingerprint is null) = (expires_at is null))
);
create index if not exists generations_by_conversation on relay_v0.generations (conversation_id);
create index if not exists generations_by_bot on relay_v0.generations (bot_id);
create unique index if not exists generations_by_message on relay_v0.generations (message_id)
  where alternative_id is null;
comment on table relay_v0.generations is 'One row a stream: who may write which row, and what came of it.';
comment on column relay_v0.generations.stream_id is
  'Null when its rows are gone: the name is free again, the answer to a repeated finish is still here.';
comment on column relay_v0.generations.fingerprint is
  'Tells its turn from every other; null while it is only announced.';
comment on column relay_v0.generations.attempt is
  'Whose call of relay_begin made it, so that a call whose answer was lost can be repeated.';
comment on column relay_v0.generations.message_id is
  'The message that it writes, whose row is there when it has ended; of a reroll, the message that is rerolled.';
comment on column relay_v0.generations.alternative_id is 'The alternative that it writes; null if it writes a message.';
comment on column relay_v0.generations.user_message_id is 'The user''s message that was saved with it.';
comment on column relay_v0.generations.expires_at is 'When it must have ended; past it, it is read as interrupted.';
comment on column relay_v0.generations.status is 'How it ended.';
comment on column relay_v0.generations.result is 'What relay_finish answered.';

alter table relay_v0.generations enable row level security;
drop policy if exists generations_of_their_user on relay_v0.generations;
create policy generations_of_their_user on relay_v0.generations
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
revoke all on relay_v0.generations from public, anon, authenticated;
grant select, insert, update, delete on relay_v0.generations to authenticated;

create table if not exists relay_v0.keys (
  id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(),
  provider text not null check (char_length(provider) <= 200),
  origin text not null default '' check (char_length(origin) <= 2000),
  base_url text check (char_length(base_url) <= 2000),
  last4 text not null check (char_length(last4) <= 4),
  sealed text not null check (char_length(sealed) <= 8000),
  created_at timestamptz not null default clock_timestamp(),
  unique (user_id, provider, origin)
);
comment on table relay_v0.keys is
  'Users'' own keys for providers, sealed by the relay. Those in the rows of bots, which are not sealed, are not used.';
alter table relay_v0.keys enable row level security;
drop policy if exists keys_of_their_user on relay_v0.keys;
create policy keys_of_their_user on relay_v0.keys
  for all to authenticated using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
revoke all on relay_v0.keys from public, anon, authenticated;
grant select, insert, update, delete on relay_v0.keys to authenticated;

-- The id of a future message has to come from the sequence that the app's own messages get theirs from, which is known
-- by its column, whatever its name is.
do $$
declare
  sequence regclass := coalesce(
    pg_get_serial_sequence('public.messages', 'id')::regclass,
    (select s.oid::regclass
     from pg_attrdef d
       join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
       join pg_depend r on r.classid = 'pg_attrdef'::regclass and r.objid = d.oid
         and r.refclassid = 'pg_class'::regclass
       join pg_class s on s.oid = r.refobjid and s.relkind = 'S'
     where d.adrelid = 'public.messages'::regclass and a.attname = 'id'));
begin
  if sequence is null then
    raise exception 'public.messages.id does not get its values from a sequence'
      using hint = 'Give it one as its default. A message''s id has to be known before the message is written.';
  end if;
  if not has_sequence_privilege('authenticated', sequence, 'usage') then
    execute format('grant usage on sequence %s to authenticated', sequence);
  end if;
  execute format(
    $f$
      create or replace function relay_v0.next_message_id() returns bigint
      language sql volatile set search_path = pg_catalog, pg_temp as $q$ select nextval(%L::regclass) $q$
    $f$,
    (select format('%I.%I', n.nspname, s.relname)
     from pg_class s join pg_namespace n on n.oid = s.relnamespace where s.oid = sequence));
end
$$;
comment on function relay_v0.next_message_id is 'The id of a message that does not exist yet.';

create or replace function relay_v0.refuse(status int, code text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception using errcode = 'PT' || status, message = code;
end
$$;
comment on function relay_v0.refuse is 'Ends the call with an HTTP status and one of the relay''s codes.';

create or replace function relay_v0.caller() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  uid uuid := (select auth.uid());
begin
  if uid is null then
    perform relay_v0.refuse(401, 'invalid_token');
  end if;
  return uid;
end
$$;
comment on function relay_v0.caller is 'The user whose token this is.';

-- A message's own text and its alternatives are the variants of one message. On the wire an alternative goes by the id
-- of its row; own texts are counted from 2^52 on, out of reach of four-byte ids, and safe in JavaScript.
create or replace function relay_v0.own_variant_id(message_id bigint) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select 4503599627370496 + message_id
$$;
comment on function relay_v0.own_variant_id is 'The variant id of the message''s own text.';

create or replace function relay_v0.is_running(generation relay_v0.generations) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select generation.fingerprint is not null and generation.result is null and generation.expires_at > now()
$$;
comment on function relay_v0.is_running is 'Whether somebody may be writing it now.';

-- The app's rows know three states, the generation the rest. A row that streams without a generation was left behind by
-- a relay that died. The relay's names of streams have a form, those of rows that others wrote may have none.
--
-- Written without functions of its own, which a query over a long story would call for every row.
create or replace view relay_v0.variants with (security_invoker = true) as
  select z.*, jsonb_build_object(
      'id', z.id, 'content', z.content, 'reasoning', z.reasoning, 'status', z.status,
      'stream_id', case when z.stream_id ~ '^[A-Za-z0-9._-]{1,128}$' then z.stream_id end,
      'bot_id', z.bot_id, 'model', z.model, 'finish_reason', z.finish_reason, 'usage', z.usage, 'error', z.error,
      'created_at', coalesce(z.t, 'epoch')) as json
  from (
    select y.id, y.message_id, y.user_id, y.is_own, y.can_be_active, y.is_user_author, y.content, y.t, y.stream_id,
      case
        when y.is_streaming and y.is_begun and not y.is_ended and y.expires_at > now() then 'streaming'
        when y.is_streaming and not y.is_begun then 'pending'
        when y.is_streaming then 'interrupted'
        when y.is_complete is not false then 'complete'
        else coalesce(nullif(y.ended_as, 'complete'), 'interrupted')
      end as status,
      coalesce(y.reasoning, '') as reasoning, y.bot_id, y.model, y.finish_reason, y.usage, y.error, y.user_message_id,
      coalesce(y.is_announced, not y.is_own) as is_announced
    from (
      select 4503599627370496 + m.id as id, m.id as message_id, m.user_id, true as is_own, true as can_be_active,
        m.is_user_author, m.content, m.t, m.stream_id, m.is_streaming, m.is_complete,
        g.id is null or g.fingerprint is not null as is_begun, g.result is not null as is_ended, g.expires_at,
        g.status as ended_as, g.reasoning, g.bot_id, g.model, g.finish_reason, g.usage, g.error, g.user_message_id,
        g.is_announced
      from public.messages m left join relay_v0.generations g on g.message_id = m.id and g.alternative_id is null
      union all
      select a.id::bigint, a.parent_message_id, a.user_id, false, a.is_active is true and a.is_streaming is not true,
        a.is_user_author, a.content, a.t, a.stream_id, a.is_streaming, a.is_complete,
        g.id is null or g.fingerprint is not null, g.result is not null, g.expires_at,
        g.status, g.reasoning, g.bot_id, g.model, g.finish_reason, g.usage, g.error, g.user_message_id,
        g.is_announced
      from public.message_alternatives a left join relay_v0.generations g on g.alternative_id = a.id
    ) y
  ) z;
comment on view relay_v0.variants is
  'Own texts and alternatives. The active one of a message is the newest alternative that can be, else its own text.';

-- Names its columns, so that keys are not even read.
create or replace view relay_v0.bots with (security_invoker = true) as
  select b.id, b.user_id, coalesce(b.name, '') as name,
    case when b.is_openrouter then 'openrouter' when a.url is null then 'deepseek' else coalesce(k.name, 'custom') end
      as provider,
    b.model, case when not b.is_openrouter and k.name is null then a.url end as base_url,
    coalesce(b.advanced_prompt, '') as system_prompt,
    case when b.temperature between 0 and 2 then b.temperature end as temperature,
    s.max_tokens,
    -- The app trims its context by itself and never weighed an answer against it, so a bot may have less context than
    -- answer. It goes on to work.
    s.context_size + case when s.max_tokens >= s.context_size then s.max_tokens else 0 end as context_size,
    case when b.reasoning then 'medium' end as reasoning, coalesce(b.show_reasoning, false) as show_reasoning,
    b.is_default, b.created_at, b.updated_at
  from public.bots b
    cross join lateral (
      select nullif(regexp_replace(btrim(b.access_path, E' \t\r\n'), '(/chat/completions)?/*$', '', 'i'), '') as url,
        lower(regexp_replace(btrim(b.access_path, E' \t\r\n'), '(/chat/completions)?/*$', '', 'i')) as lower_url) a
    cross join lateral (
      select case when b.max_tokens > 0 then b.max_tokens::bigint end as max_tokens,
        case when b.context_size > 0 then b.context_size::bigint else 10000 end as context_size) s
    -- The relay's providers, as src/provider/habits.rs has them.
    left join (values
      ('openai', 'https://api.openai.com/v1'),
      ('deepseek', 'https://api.deepseek.com/v1'),
      ('deepseek', 'https://api.deepseek.com'),
      ('openrouter', 'https://openrouter.ai/api/v1'),
      ('groq', 'https://api.groq.com/openai/v1'),
      ('mistral', 'https://api.mistral.ai/v1'),
      ('xai', 'https://api.x.ai/v1'),
      ('together', 'https://api.together.xyz/v1'),
      ('gemini', 'https://generativelanguage.googleapis.com/v1beta/openai'),
      ('anthropic', 'https://api.anthropic.com/v1'),
      ('ollama', 'http://127.0.0.1:11434/v1')) k (name, base_url) on k.base_url = a.lower_url;
comment on view relay_v0.bots is 'The app''s bots as the contract has them.';
revoke all on relay_v0.variants, relay_v0.bots from public, anon, authenticated;
grant select on relay_v0.variants, relay_v0.bots to authenticated;

create or replace function relay_v0.conversation_of(uid uuid, conversation_id bigint) returns public.conversations
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  conversation public.conversations;
begin
  select * into conversation from public.conversations c
    where c.id = conversation_id and c.user_id = uid for no key update;
  if not found then
    perform relay_v0.refuse(404, 'conversation_not_found');
  end if;
  return conversation;
end
$$;
comment on function relay_v0.conversation_of is
  'The user''s conversation, locked against other changes until the transaction ends.';

create or replace function relay_v0.message_of(uid uuid, message_id bigint) returns public.messages
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  message public.messages;
begin
  select * into message from public.messages m where m.id = message_id and m.user_id = uid;
  if not found then
    perform relay_v0.refuse(404, 'message_not_found');
  end if;
  return message;
end
$$;
comment on function relay_v0.message_of is 'The user''s message.';

create or replace function relay_v0.lock_message(uid uuid, message_id bigint) returns public.messages
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform relay_v0.conversation_of(uid, (relay_v0.message_of(uid, message_id)).conversation_id);
  -- Again, now that the relay does not delete it.
  return relay_v0.message_of(uid, message_id);
end
$$;
comment on function relay_v0.lock_message is
  'The user''s message, its conversation locked against other changes until the transaction ends.';

-- A message's place in its story is its time, or the beginning of time if it has none, and its id.
create or replace function relay_v0.last_message(
  uid uuid, conversation_id bigint, above_t timestamptz default 'infinity', above_id bigint default 9223372036854775807)
returns public.messages
language sql stable set search_path = pg_catalog, pg_temp as $$
  select m.* from public.messages m
  where m.conversation_id = last_message.conversation_id and m.user_id = uid
    and (coalesce(m.t, '-infinity'), m.id) < (above_t, above_id)
  order by m.t desc nulls last, m.id desc limit 1
$$;
comment on function relay_v0.last_message is 'The last message of the story, or the last one above that place.';

create or replace function relay_v0.parent_id(message public.messages) returns integer
language sql stable set search_path = pg_catalog, pg_temp as $$
  select (relay_v0.last_message(
    message.user_id, message.conversation_id, coalesce(message.t, '-infinity'), message.id)).id
$$;
comment on function relay_v0.parent_id is 'The message before it.';

-- Clocks of clients may be ahead, and what is added to a story belongs at its end.
create or replace function relay_v0.next_time(conversation_id bigint) returns timestamptz
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select greatest(
    clock_timestamp(),
    (select max(m.t) + interval '1 microsecond' from public.messages m
     where m.conversation_id = next_time.conversation_id and isfinite(m.t)))
$$;
comment on function relay_v0.next_time is 'The time of a message that is added to the story now.';

-- `reference` has either `message_id` or `message_stream_id`, the stream that wrote the message. Storytellr's frontend
-- calls a message that it has not seen saved yet by a name that may be the stream's whole name, or one made from it.
create or replace function relay_v0.rerollable_message(uid uuid, reference jsonb) returns public.messages
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  message public.messages;
  name text := reference ->> 'message_stream_id';
  names text[] := array[name, 'temp-stream-' || name];
  id bigint := (reference ->> 'message_id')::bigint;
begin
  if name is not null then
    select g.message_id into id from relay_v0.generations g
      where g.user_id = uid and g.stream_id = any (names) order by g.stream_id = name desc limit 1;
    if not found then
      select v.message_id into id from relay_v0.variants v
        where v.user_id = uid and v.stream_id = any (names)
        order by v.stream_id = name desc, v.is_own desc, v.t, v.id limit 1;
    end if;
  end if;
  message := relay_v0.message_of(uid, id);
  if message.is_user_author then
    perform relay_v0.refuse(400, 'not_rerollable');
  end if;
  return message;
end
$$;
comment on function relay_v0.rerollable_message is
  'The user''s message that the reference means, if another variant of it may be generated.';

create or replace function relay_v0.bot_json(bot relay_v0.bots) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(bot) - 'user_id'
$$;
comment on function relay_v0.bot_json is 'A bot as the contract has it.';

create or replace function relay_v0.bot_of(uid uuid, bot_id bigint) returns relay_v0.bots
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  bot relay_v0.bots;
begin
  select * into bot from relay_v0.bots b where b.id = bot_id and b.user_id = uid;
  if not found then
    perform relay_v0.refuse(403, 'bot_not_found');
  end if;
  return bot;
end
$$;
comment on function relay_v0.bot_of is 'The user''s bot.';

-- The named bot or none; else the first that exists of the bound one, a default, any.
create or replace function relay_v0.resolve_bot(uid uuid, named bigint, bound bigint) returns relay_v0.bots
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  bot relay_v0.bots;
begin
  select * into bot from relay_v0.bots b
    where b.user_id = uid and (named is null or b.id = named)
    order by (b.id = bound) is true desc, b.is_default desc, b.updated_at desc, b.id desc limit 1;
  if not found then
    perform relay_v0.refuse(403, case when named is null then 'no_bot' else 'bot_not_found' end);
  end if;
  return bot;
end
$$;
comment on function relay_v0.resolve_bot is 'The bot that answers.';

-- As many as relay_put_key lets there be.
create or replace function relay_v0.keys_for(uid uuid, bot relay_v0.bots) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(jsonb_agg(k.json), '[]') from (
    select jsonb_build_object('id', k.id, 'origin', k.origin, 'sealed', k.sealed) as json
    from relay_v0.keys k where k.user_id = uid and k.provider = bot.provider
    order by k.created_at desc, k.id limit 32
  ) k
$$;
comment on function relay_v0.keys_for is 'The user''s keys for the bot''s provider, as they are sealed.';

-- Read from the end, text by text, and no further than there is room.
create or replace function relay_v0.path_above(
  uid uuid, conversation_id bigint, above_t timestamptz, above_id bigint, room bigint) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  message record;
  text_shown text;
  path jsonb[] := '{}';
  taken bigint := 0;
begin
  for message in
    select m.id, m.is_user_author, m.content from public.messages m
    where m.conversation_id = path_above.conversation_id and m.user_id = uid
      and (coalesce(m.t, '-infinity'), m.id) < (above_t, above_id)
    order by m.t desc nulls last, m.id desc
  loop
    select a.content into text_shown from public.message_alternatives a
      where a.parent_message_id = message.id and a.user_id = uid and a.is_active and a.is_streaming is not true
      order by a.t desc nulls last, a.id desc limit 1;
    if not found then
      text_shown := message.content;
    end if;
    taken := taken + char_length(text_shown);
    exit when taken > room and path <> '{}';
    path := jsonb_build_object(
      'role', case when message.is_user_author then 'user' else 'assistant' end, 'content', text_shown) || path;
  end loop;
  return to_jsonb(path);
end
$$;
comment on function relay_v0.path_above is
  'The texts of the story above that place, oldest first: the last one, and before it as many as fit the room in characters.';

create or replace function relay_v0.active_variant_id(uid uuid, message_id bigint) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
  select v.id from relay_v0.variants v
  where v.user_id = uid and v.message_id = active_variant_id.message_id and v.can_be_active
  order by v.is_own, v.t desc nulls last, v.id desc limit 1
$$;
comment on function relay_v0.active_variant_id is 'The variant of the message that the story shows.';

create or replace function relay_v0.message_json(message public.messages) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'id', message.id,
    'parent_id', relay_v0.parent_id(message),
    'role', case when message.is_user_author then 'user' else 'assistant' end,
    'active_variant_id', relay_v0.active_variant_id(message.user_id, message.id),
    'created_at', coalesce(message.t, 'epoch'),
    'variants',
      (select jsonb_agg(v.json order by v.is_own desc, v.t nulls first, v.id)
       from relay_v0.variants v where v.user_id = message.user_id and v.message_id = message.id))
$$;
comment on function relay_v0.message_json is 'A message with its variants as the contract has it.';

create or replace function relay_v0.refuse_larger(uid uuid, message_ids integer[], args jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  -- Without the argument there is no limit.
  if (
    select sum(512 + octet_length(v.content) + octet_length(v.reasoning))
    from relay_v0.variants v where v.user_id = uid and v.message_id = any (message_ids)
  ) > (args ->> 'len_max')::bigint
  then
    perform relay_v0.refuse(409, 'story_too_large');
  end if;
end
$$;
comment on function relay_v0.refuse_larger is 'Refuses messages whose texts have more than args.len_max bytes.';

create or replace function relay_v0.conversation_json(conversation public.conversations) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'id', conversation.id, 'title', conversation.title, 'bot_id', conversation.bot_id,
    'head_id', (relay_v0.last_message(conversation.user_id, conversation.id)).id,
    'created_at', coalesce(conversation.created_at, conversation.last_message_at, 'epoch'),
    'updated_at', coalesce(conversation.last_message_at, conversation.created_at, 'epoch'))
$$;
comment on function relay_v0.conversation_json is 'A conversation as the contract has it, without its messages.';

-- A reply that is being written has no row yet, but it has a name and a state. Streams of the Python relay are known
-- only by their rows.
create or replace function relay_v0.saved_stream(uid uuid, stream_id text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  generation relay_v0.generations;
  variant relay_v0.variants;
  message public.messages;
  bot record;
begin
  select * into generation from relay_v0.generations g where g.user_id = uid and g.stream_id = saved_stream.stream_id;
  if found then
    select * into variant from relay_v0.variants v
      where v.user_id = uid and v.message_id = generation.message_id
        and v.id = coalesce(generation.alternative_id, relay_v0.own_variant_id(generation.message_id));
  else
    select * into variant from relay_v0.variants v
      where v.user_id = uid and v.stream_id = saved_stream.stream_id order by v.is_own desc, v.t, v.id limit 1;
  end if;
  select m.* into message from public.messages m where m.id = variant.message_id and m.user_id = uid;
  if variant.id is null then
    if generation.alternative_id is not null or generation.message_id is null or generation.result is not null then
      return null;
    end if;
    message.id := generation.message_id;
    message.conversation_id := generation.conversation_id;
    message.t := 'infinity';
    message.user_id := uid;
    message.is_user_author := false;
    variant.id := relay_v0.own_variant_id(generation.message_id);
    variant.content := '';
    variant.status := case when relay_v0.is_running(generation) then 'streaming' else 'interrupted' end;
    variant.bot_id := generation.bot_id;
    variant.model := generation.model;
    variant.user_message_id := generation.user_message_id;
    variant.is_announced := false;
    variant.t := generation.created_at;
  end if;
  select b.id, coalesce(b.name, '') as name into bot from public.bots b where b.id = variant.bot_id and b.user_id = uid;
  return jsonb_build_object(
    'id', message.id, 'conversation_id', message.conversation_id,
    'parent_id', relay_v0.parent_id(message),
    'role', case when message.is_user_author then 'user' else 'assistant' end,
    'variant_id', variant.id,
    'is_active', relay_v0.active_variant_id(uid, message.id) is not distinct from variant.id,
    'stream_id', saved_stream.stream_id, 'content', variant.content, 'reasoning', coalesce(variant.reasoning, ''),
    'status', variant.status, 'bot', jsonb_build_object('id', bot.id, 'name', coalesce(bot.name, '')),
    'model', variant.model, 'finish_reason', variant.finish_reason, 'usage', variant.usage, 'error', variant.error,
    'user_message_id',
      (select m.id from public.messages m where m.id = variant.user_message_id and m.user_id = uid),
    'is_announced', variant.is_announced, 'created_at', coalesce(variant.t, 'epoch'));
end
$$;
comment on function relay_v0.saved_stream is 'What is saved of the user''s stream; null if there is none.';

-- Gives the write token of the generation out, in place of the one that was given out before. A relay that brings the
-- hash of its own keeps that token where it survives the relay: it can end the generation though it never came to hear
-- of this answer.
create or replace function relay_v0.give_write_token(generation_id bigint, own_hash text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  -- Two random UUIDs have 244 bits of the operating system's randomness.
  token text := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
begin
  if own_hash is not null then
    if own_hash !~ '^[0-9a-f]{64}$' then
      perform relay_v0.refuse(400, 'invalid_request');
    end if;
    update relay_v0.generations set write_token_hash = decode(own_hash, 'hex') where id = generation_id;
    return null;
  end if;
  update relay_v0.generations set write_token_hash = sha256(convert_to(token, 'UTF8')) where id = generation_id;
  return token;
end
$$;
comment on function relay_v0.give_write_token is
  'A new write token for the generation, of which the row keeps the hash; null if the caller has one of their own.';

-- As the Python relay left them.
create or replace function relay_v0.insert_alternative(message public.messages, stream_id text) returns integer
language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into public.message_alternatives (conversation_id, parent_message_id, content, t, is_user_author, is_active,
    is_streaming, is_complete, stream_id, user_id)
  values (message.conversation_id, message.id, '', clock_timestamp(), false, true, true, false, stream_id,
    message.user_id)
  returning id
$$;
comment on function relay_v0.insert_alternative is 'An alternative that nobody has written yet.';

create or replace function relay_v0.is_gone(generation relay_v0.generations) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
    when generation.alternative_id is not null then not exists (
      select from public.message_alternatives a
      where a.id = generation.alternative_id and a.user_id = generation.user_id)
    when generation.result is not null then not exists (
      select from public.messages m where m.id = generation.message_id and m.user_id = generation.user_id)
    else generation.message_id is null
  end
$$;
comment on function relay_v0.is_gone is 'Whether what it wrote, or was to write, has been deleted.';

create or replace function public.relay_begin(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  place jsonb := args -> 'place';
  kind text := place ->> 'kind';
  input text := place ->> 'input';
  generation relay_v0.generations;
  conversation public.conversations;
  message public.messages;
  parent public.messages;
  bot relay_v0.bots;
  is_repeated boolean := false;
begin
  if num_nulls(args ->> 'stream_id', args ->> 'fingerprint', args ->> 'expires_at', kind) > 0
    or kind not in ('nowhere', 'reply', 'reroll', 'announced')
  then
    perform relay_v0.refuse(400, 'invalid_request');
  end if;
  -- Who has the name? It is asked again if somebody else takes it in this moment.
  loop
    select * into generation from relay_v0.generations g
      where g.user_id = uid and g.stream_id = args ->> 'stream_id' for update;
    if found and relay_v0.is_gone(generation) then
      -- What it wrote was deleted, so the name is free.
      update relay_v0.generations set stream_id = null where id = generation.id;
    elsif found and generation.fingerprint is null then
      exit;
    elsif found then
      if generation.fingerprint <> args ->> 'fingerprint' then
        perform relay_v0.refuse(409, 'stream_id_reused');
      end if;
      is_repeated := (generation.attempt = (args ->> 'attempt')::uuid) is true and generation.result is null;
      if not is_repeated then
        return jsonb_build_object('existing', relay_v0.saved_stream(uid, generation.stream_id));
      end if;
      exit;
    end if;
    generation := null;
    exit when kind = 'nowhere';
    insert into relay_v0.generations (user_id, stream_id, fingerprint, attempt, expires_at)
      values (uid, args ->> 'stream_id', args ->> 'fingerprint', (args ->> 'attempt')::uuid,
        (args ->> 'expires_at')::timestamptz)
      on conflict (user_id, stream_id) do nothing returning * into generation;
    exit when found;
  end loop;

  if kind = 'nowhere' then
    if generation.id is not null then
      perform relay_v0.refuse(409, 'stream_id_reused');
    end if;
    bot := relay_v0.resolve_bot(uid, (args ->> 'bot_id')::bigint, null);
    return jsonb_build_object('bot', relay_v0.bot_json(bot), 'path', '[]'::jsonb, 'keys', relay_v0.keys_for(uid, bot));
  end if;

  -- Where does the answer belong?
  if is_repeated then
    conversation := relay_v0.conversation_of(uid, generation.conversation_id);
    if generation.alternative_id is not null then
      message := relay_v0.message_of(uid, generation.message_id);
    end if;
  elsif kind = 'announced' then
    if generation.fingerprint is not null or generation.alternative_id is distinct from (place ->> 'variant_id')::bigint
      or generation.conversation_id <> (place ->> 'conversation_id')::bigint
    then
      perform relay_v0.refuse(404, 'variant_not_found');
    end if;
    conversation := relay_v0.conversation_of(uid, generation.conversation_id);
    message := relay_v0.message_of(uid, generation.message_id);
  elsif generation.fingerprint is null then
    perform relay_v0.refuse(409, 'stream_id_reused');
  elsif kind = 'reroll' then
    message := relay_v0.lock_message(uid, (relay_v0.rerollable_message(uid, place)).id);
    conversation := relay_v0.conversation_of(uid, message.conversation_id);
  else
    conversation := relay_v0.conversation_of(uid, (place ->> 'conversation_id')::bigint);
    if place ->> 'parent_id' is not null then
      parent := relay_v0.message_of(uid, (place ->> 'parent_id')::bigint);
      if parent.conversation_id <> conversation.id then
        perform relay_v0.refuse(404, 'message_not_found');
      elsif parent.id <> (relay_v0.last_message(uid, conversation.id)).id then
        perform relay_v0.refuse(400, 'unsupported');
      end if;
    end if;
  end if;

  bot := relay_v0.resolve_bot(uid, (args ->> 'bot_id')::bigint, conversation.bot_id);

  if not is_repeated then
    if kind = 'reply' then
      if input is not null then
        insert into public.messages (conversation_id, content, t, is_user_author, is_active, is_streaming, is_complete,
          user_id)
        values (conversation.id, input, relay_v0.next_time(conversation.id), true, true, false, true, uid)
        returning id into generation.user_message_id;
      end if;
      generation.message_id := relay_v0.next_message_id();
    else
      generation.message_id := message.id;
      generation.alternative_id := coalesce(
        generation.alternative_id, relay_v0.insert_alternative(message, args ->> 'stream_id'));
    end if;
    update relay_v0.generations set
      fingerprint = args ->> 'fingerprint', attempt = (args ->> 'attempt')::uuid, conversation_id = conversation.id,
      message_id = generation.message_id, alternative_id = generation.alternative_id,
      user_message_id = generation.user_message_id, bot_id = bot.id, model = bot.model,
      expires_at = (args ->> 'expires_at')::timestamptz
      where id = generation.id;
  end if;

  return jsonb_build_object(
    'bot', relay_v0.bot_json(bot),
    'rows', jsonb_build_object(
      'conversation_id', conversation.id, 'message_id', generation.message_id,
      'variant_id', coalesce(generation.alternative_id, relay_v0.own_variant_id(generation.message_id)),
      'user_message_id', generation.user_message_id, 'write_token', relay_v0.give_write_token(generation.id, args ->> 'write_token_hash')),
    'path', case when (args ->> 'wants_path')::boolean
      then relay_v0.path_above(
        uid, conversation.id,
        case when message.id is null then 'infinity' else coalesce(message.t, '-infinity') end,
        coalesce(message.id, 9223372036854775807), bot.context_size * (args ->> 'path_chars_per_token')::bigint)
      else '[]'::jsonb end,
    'keys', relay_v0.keys_for(uid, bot));
end
$$;
comment on function public.relay_begin is
  'Decides which bot answers and notes what the generation will write: the id of a message to come, or an alternative. {stream_id, fingerprint, attempt, place, bot_id, wants_path, path_chars_per_token, expires_at} → {bot, rows, path, keys} or {existing}.';

-- Runs as its owner: it has to work after the user's token has expired, and the write token says which rows it may
-- touch. The app's triggers see the user all the same, as they did when the Python relay wrote with the user's token.
create or replace function public.relay_finish(jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  outcome text := args ->> 'outcome';
  new_content text := coalesce(args ->> 'content', '');
  hash bytea := sha256(convert_to(args ->> 'write_token', 'UTF8'));
  claims text := current_setting('request.jwt.claims', true);
  generation relay_v0.generations;
  alternative public.message_alternatives;
  user_message public.messages;
  is_left boolean;
begin
  if outcome is null or outcome not in ('complete', 'stopped', 'interrupted', 'failed', 'refused') then
    perform relay_v0.refuse(400, 'invalid_request');
  end if;
  -- The conversation first, as everywhere, so that no two calls wait for each other. It has to be the user's still.
  perform from relay_v0.generations g join public.conversations c on c.id = g.conversation_id and c.user_id = g.user_id
    where g.write_token_hash = hash for no key update of c;
  if not found then
    perform relay_v0.refuse(404, 'stream_not_found');
  end if;
  select * into generation from relay_v0.generations g where g.write_token_hash = hash for update;
  if generation.result is not null then
    return generation.result;
  elsif generation.id is null or relay_v0.is_gone(generation) then
    perform relay_v0.refuse(404, 'stream_not_found');
  end if;

  perform set_config(
    'request.jwt.claims', jsonb_build_object('sub', generation.user_id, 'role', 'authenticated')::text, true);
  -- An answer without a text leaves nothing behind, unless that is what the provider said.
  is_left := outcome = 'complete' or (new_content <> '' and outcome <> 'refused');
  if generation.alternative_id is null then
    if is_left then
      insert into public.messages (id, conversation_id, content, t, is_user_author, is_active, is_streaming,
        is_complete, stream_id, user_id)
      overriding system value
      values (generation.message_id, generation.conversation_id, new_content,
        relay_v0.next_time(generation.conversation_id), false, true, false, outcome = 'complete', generation.stream_id,
        generation.user_id);
    end if;
  elsif is_left then
    update public.message_alternatives a set
      content = new_content, is_streaming = false, is_complete = outcome = 'complete',
      is_active = outcome in ('complete', 'stopped')
      where a.id = generation.alternative_id returning * into alternative;
    -- The newest active one is shown, and that is this one, though a later one may have been quicker.
    if alternative.is_active then
      update public.message_alternatives a set is_active = false
        where a.parent_message_id = alternative.parent_message_id and a.user_id = generation.user_id
          and a.is_active and a.is_streaming is not true
          and (coalesce(a.t, '-infinity'), a.id) > (coalesce(alternative.t, '-infinity'), alternative.id);
    end if;
  else
    delete from public.message_alternatives where id = generation.alternative_id;
  end if;
  if outcome = 'refused' and generation.user_message_id is not null then
    select * into user_message from public.messages m
      where m.id = generation.user_message_id and m.user_id = generation.user_id;
    if found
      and not exists (
        select from public.messages m
        where m.conversation_id = user_message.conversation_id
          and (coalesce(m.t, '-infinity'), m.id) > (coalesce(user_message.t, '-infinity'), user_message.id))
      and not exists (select from public.message_alternatives a where a.parent_message_id = user_message.id)
    then
      delete from public.messages where id = user_message.id;
    end if;
  end if;
  perform set_config('request.jwt.claims', coalesce(claims, ''), true);

  generation.result := jsonb_build_object(
    'message_id', case when is_left then generation.message_id end,
    'variant_id',
      case when is_left then coalesce(generation.alternative_id, relay_v0.own_variant_id(generation.message_id)) end);
  -- Where nothing is left the name is free again.
  update relay_v0.generations set
    status = outcome, reasoning = case when is_left then coalesce(args ->> 'reasoning', '') else '' end,
    finish_reason = args ->> 'finish_reason',
    usage = nullif(args -> 'usage', 'null'), error = nullif(args -> 'failure', 'null'),
    model = coalesce(nullif(args ->> 'model', ''), model), result = generation.result, ended_at = clock_timestamp(),
    stream_id = case when is_left then stream_id end
    where id = generation.id;
  -- Answers that nobody asks for any more.
  delete from relay_v0.generations g
    where g.user_id = generation.user_id and g.stream_id is null and g.ended_at < now() - interval '7 days';
  return generation.result;
end
$$;
comment on function public.relay_finish is
  'Ends the generation that the write token was given out for, once; repeated, it answers as the first time. Needs no user. {write_token, outcome, content, reasoning, finish_reason, usage, failure, model} → {message_id, variant_id}.';

create or replace function public.relay_find_stream(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select relay_v0.saved_stream(relay_v0.caller(), $1 ->> 'stream_id')
$$;
comment on function public.relay_find_stream is 'What is saved of a stream. {stream_id} → the stream or null.';

create or replace function public.relay_announce_reroll(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  message public.messages := relay_v0.lock_message(uid, (relay_v0.rerollable_message(uid, args)).id);
  milliseconds bigint := extract(epoch from clock_timestamp()) * 1000;
  generation relay_v0.generations;
begin
  if message.conversation_id <> (args ->> 'conversation_id')::bigint then
    perform relay_v0.refuse(404, 'message_not_found');
  end if;
  loop
    insert into relay_v0.generations (user_id, stream_id, conversation_id, is_announced)
      values (uid, 'reroll-' || milliseconds, message.conversation_id, true)
      on conflict (user_id, stream_id) do nothing returning * into generation;
    exit when found;
    milliseconds := milliseconds + 1;
  end loop;
  generation.alternative_id := relay_v0.insert_alternative(message, generation.stream_id);
  update relay_v0.generations set message_id = message.id, alternative_id = generation.alternative_id
    where id = generation.id;
  return jsonb_build_object('variant_id', generation.alternative_id, 'message_id', message.id,
    'conversation_id', message.conversation_id, 'stream_id', generation.stream_id);
end
$$;
comment on function public.relay_announce_reroll is
  'The first half of the two-step reroll. {message_id or message_stream_id, conversation_id} → {variant_id, message_id, conversation_id, stream_id}.';

create or replace function public.relay_list_conversations(jsonb) returns jsonb
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  page_len bigint := (args ->> 'limit')::bigint;
  after text := args ->> 'after';
  after_time timestamptz := 'infinity';
  after_id bigint := 9223372036854775807;
  page jsonb;
begin
  if page_len is null or page_len < 1 then
    perform relay_v0.refuse(400, 'invalid_request');
  end if;
  if after is not null then
    if after !~ '^\d{1,16}-\d{1,16}$' then
      perform relay_v0.refuse(400, 'invalid_request');
    end if;
    after_time := 'epoch'::timestamptz + split_part(after, '-', 1)::bigint * interval '1 microsecond';
    after_id := split_part(after, '-', 2)::bigint;
  end if;
  with found as (
    select c, u.updated_at, row_number() over (order by u.updated_at desc, c.id desc) as at
    from public.conversations c
      cross join lateral (select coalesce(c.last_message_at, c.created_at, 'epoch') as updated_at) u
    where c.user_id = uid and (u.updated_at, c.id) < (after_time, after_id)
    order by u.updated_at desc, c.id desc limit page_len + 1
  )
  select jsonb_build_object(
    'data', coalesce(jsonb_agg(relay_v0.conversation_json(c) order by at) filter (where at <= page_len), '[]'),
    'next', max((extract(epoch from updated_at) * 1000000)::bigint || '-' || (c).id)
      filter (where at = page_len and (select count(*) from found) > page_len))
    into page from found;
  return page;
end
$$;
comment on function public.relay_list_conversations is
  'The user''s conversations, the most recently changed first. {after, limit} → {data, next}.';

create or replace function public.relay_create_conversation(jsonb) returns jsonb
language sql volatile security invoker set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(relay_v0.refuse(400, 'unsupported'))
$$;
comment on function public.relay_create_conversation is
  'Refuses: a conversation needs a persona, which only the app knows.';

create or replace function public.relay_tree(jsonb) returns jsonb
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  conversation public.conversations;
  message_ids integer[];
  head_id integer;
  path jsonb;
  messages jsonb;
  running jsonb;
begin
  select * into conversation from public.conversations c
    where c.id = (args ->> 'id')::bigint and c.user_id = uid;
  if not found then
    perform relay_v0.refuse(404, 'conversation_not_found');
  end if;
  message_ids := array(
    select m.id from public.messages m where m.conversation_id = conversation.id and m.user_id = uid);
  perform relay_v0.refuse_larger(uid, message_ids, args);
  -- Messages and their variants in one pass, without a join that could be planned badly: an own text stands for its
  -- message.
  with messages as (
    select v.message_id as id, (array_agg(v.t) filter (where v.is_own))[1] as t,
      bool_or(v.is_user_author) filter (where v.is_own) as is_user_author,
      jsonb_agg(v.json order by v.is_own desc, v.t nulls first, v.id) as variants,
      (array_agg(v.id order by v.is_own, v.t desc nulls last, v.id desc) filter (where v.can_be_active))[1] as active_id
    from relay_v0.variants v where v.user_id = uid and v.message_id = any (message_ids)
    group by v.message_id
  ), story as (
    select m.*, lag(m.id) over (order by m.t nulls first, m.id) as parent_id from messages m
  )
  select coalesce(jsonb_agg(s.id order by s.t nulls first, s.id), '[]'),
      (array_agg(s.id order by s.t desc nulls last, s.id desc))[1],
      coalesce(jsonb_agg(jsonb_build_object(
        'id', s.id, 'parent_id', s.parent_id, 'role', case when s.is_user_author then 'user' else 'assistant' end,
        'active_variant_id', s.active_id, 'created_at', coalesce(s.t, 'epoch'), 'variants', s.variants)
        order by s.t nulls first, s.id), '[]')
    into path, head_id, messages
    from story s;
  -- Replies that are being written have no rows yet.
  select coalesce(jsonb_agg(jsonb_build_object(
      'id', g.message_id, 'parent_id', head_id, 'role', 'assistant', 'active_variant_id', null,
      'created_at', g.created_at, 'variants', jsonb_build_array(jsonb_build_object(
        'id', relay_v0.own_variant_id(g.message_id), 'content', '', 'reasoning', '', 'status', 'streaming',
        'stream_id', g.stream_id, 'bot_id', g.bot_id, 'model', g.model, 'finish_reason', null, 'usage', null,
        'error', null, 'created_at', g.created_at))) order by g.message_id), '[]')
    into running
    from relay_v0.generations g
    where g.conversation_id = conversation.id and g.user_id = uid and g.alternative_id is null
      and relay_v0.is_running(g);
  return relay_v0.conversation_json(conversation)
    || jsonb_build_object('path', path, 'messages', messages || running);
end
$$;
comment on function public.relay_tree is
  'The whole story of a conversation. {id, len_max} → the conversation, its path and its messages, those that are being written at the end.';

create or replace function public.relay_patch_conversation(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  patch jsonb := args -> 'patch';
  conversation public.conversations := relay_v0.conversation_of(uid, (args ->> 'id')::bigint);
  head public.messages;
begin
  if patch ->> 'bot_id' is not null then
    perform relay_v0.bot_of(uid, (patch ->> 'bot_id')::bigint);
  end if;
  if patch ? 'head_id' then
    head := relay_v0.message_of(uid, (patch ->> 'head_id')::bigint);
    if head.conversation_id <> conversation.id then
      perform relay_v0.refuse(404, 'message_not_found');
    elsif head.id <> (relay_v0.last_message(uid, conversation.id)).id then
      perform relay_v0.refuse(400, 'unsupported');
    end if;
  end if;
  update public.conversations c set
    title = coalesce(patch ->> 'title', c.title),
    bot_id = case when patch ? 'bot_id' then (patch ->> 'bot_id')::bigint else c.bot_id end
    where c.id = conversation.id and c.user_id = uid returning * into conversation;
  return relay_v0.conversation_json(conversation);
end
$$;
comment on function public.relay_patch_conversation is
  'Changes what the patch names and nothing else. {id, patch: {title, bot_id, head_id}} → the conversation.';

create or replace function public.relay_delete_conversation(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  conversation public.conversations := relay_v0.conversation_of(uid, (args ->> 'id')::bigint);
begin
  if exists (
    select from relay_v0.generations g
    where g.conversation_id = conversation.id and g.user_id = uid and relay_v0.is_running(g))
  then
    perform relay_v0.refuse(409, 'generation_running');
  end if;
  delete from public.message_alternatives a
    using public.messages m
    where a.parent_message_id = m.id and a.user_id = uid and m.conversation_id = conversation.id and m.user_id = uid;
  delete from public.message_alternatives a where a.conversation_id = conversation.id and a.user_id = uid;
  delete from public.messages m where m.conversation_id = conversation.id and m.user_id = uid;
  delete from public.conversations c where c.id = conversation.id and c.user_id = uid;
  return 'null';
exception when foreign_key_violation then
  -- Other rows of the app hang on it, of which only the app knows what is to become.
  perform relay_v0.refuse(400, 'unsupported');
end
$$;
comment on function public.relay_delete_conversation is 'Removes a conversation with all its messages. {id} → null.';

create or replace function public.relay_select_variant(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  message public.messages := relay_v0.lock_message(uid, (args ->> 'message_id')::bigint);
  variant_id bigint := (args ->> 'variant_id')::bigint;
  status text;
begin
  select v.status into status from relay_v0.variants v
    where v.id = variant_id and v.message_id = message.id and v.user_id = uid;
  if not found or status = 'pending' then
    perform relay_v0.refuse(404, 'variant_not_found');
  elsif status = 'streaming' then
    perform relay_v0.refuse(409, 'generation_running');
  end if;
  -- One that streams past its time is settled by being chosen.
  update public.message_alternatives a set
    is_active = a.id = variant_id, is_streaming = a.is_streaming and a.id <> variant_id
    where a.parent_message_id = message.id and a.user_id = uid and (a.is_active or a.id = variant_id);
  perform relay_v0.refuse_larger(uid, array[message.id], args);
  return relay_v0.message_json(message);
end
$$;
comment on function public.relay_select_variant is
  'Makes a variant the one that the story shows. {message_id, variant_id, len_max} → the message.';

create or replace function public.relay_write_variant(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  message public.messages := relay_v0.lock_message(uid, (args ->> 'message_id')::bigint);
begin
  update public.message_alternatives a set is_active = false
    where a.parent_message_id = message.id and a.user_id = uid and a.is_active;
  insert into public.message_alternatives (conversation_id, parent_message_id, content, t, is_user_author, is_active,
    is_streaming, is_complete, user_id)
  values (message.conversation_id, message.id, args ->> 'content', clock_timestamp(), message.is_user_author, true,
    false, true, uid);
  perform relay_v0.refuse_larger(uid, array[message.id], args);
  return relay_v0.message_json(message);
end
$$;
comment on function public.relay_write_variant is
  'Adds a variant written by hand, complete and active. {message_id, content, len_max} → the message.';

create or replace function public.relay_delete_message(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  message public.messages;
  doomed integer[];
begin
  if exists (
    select from relay_v0.generations g
    where g.message_id = (args ->> 'message_id')::bigint and g.alternative_id is null and g.user_id = uid
      and relay_v0.is_running(g))
  then
    perform relay_v0.refuse(409, 'generation_running');
  end if;
  message := relay_v0.lock_message(uid, (args ->> 'message_id')::bigint);
  doomed := array(
    select m.id from public.messages m
    where m.conversation_id = message.conversation_id and m.user_id = uid
      and (coalesce(m.t, '-infinity'), m.id) >= (coalesce(message.t, '-infinity'), message.id));
  -- A reply that is being written will come after everything.
  if exists (
    select from relay_v0.generations g
    where g.conversation_id = message.conversation_id and g.user_id = uid
      and (g.alternative_id is null or g.message_id = any (doomed)) and relay_v0.is_running(g))
  then
    perform relay_v0.refuse(409, 'generation_running');
  end if;
  delete from relay_v0.generations g
    where g.conversation_id = message.conversation_id and g.user_id = uid
      and (g.message_id = any (doomed) or (g.alternative_id is null and g.result is null));
  delete from public.message_alternatives a where a.parent_message_id = any (doomed) and a.user_id = uid;
  delete from public.messages m where m.id = any (doomed) and m.user_id = uid;
  return 'null';
exception when foreign_key_violation then
  -- Other rows of the app hang on it, of which only the app knows what is to become.
  perform relay_v0.refuse(400, 'unsupported');
end
$$;
comment on function public.relay_delete_message is 'Removes a message and all after it. {message_id} → null.';

create or replace function public.relay_list_bots(jsonb) returns jsonb
language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  page_len bigint := (args ->> 'limit')::bigint;
  after text := args ->> 'after';
  page jsonb;
begin
  if page_len is null or page_len < 1 or after !~ '^\d{1,16}$' then
    perform relay_v0.refuse(400, 'invalid_request');
  end if;
  with found as (
    select b, row_number() over (order by b.id) as at from relay_v0.bots b
    where b.user_id = uid and b.id > coalesce(after::bigint, 0) order by b.id limit page_len + 1
  )
  select jsonb_build_object(
    'data', coalesce(jsonb_agg(relay_v0.bot_json(b) order by at) filter (where at <= page_len), '[]'),
    'next', max((b).id::text) filter (where at = page_len and (select count(*) from found) > page_len))
    into page from found;
  return page;
end
$$;
comment on function public.relay_list_bots is 'The user''s bots, oldest first. {after, limit} → {data, next}.';

create or replace function public.relay_read_bot(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select relay_v0.bot_json(relay_v0.bot_of(relay_v0.caller(), ($1 ->> 'id')::bigint))
$$;
comment on function public.relay_read_bot is 'One of the user''s bots. {id} → the bot.';

create or replace function public.relay_create_bot(jsonb) returns jsonb
language sql volatile security invoker set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(relay_v0.refuse(400, 'unsupported'))
$$;
comment on function public.relay_create_bot is 'Refuses: bots are made in the app.';

create or replace function public.relay_update_bot(jsonb) returns jsonb
language sql volatile security invoker set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(relay_v0.refuse(400, 'unsupported'))
$$;
comment on function public.relay_update_bot is 'Refuses: bots are changed in the app.';

create or replace function public.relay_delete_bot(jsonb) returns jsonb
language sql volatile security invoker set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(relay_v0.refuse(400, 'unsupported'))
$$;
comment on function public.relay_delete_bot is 'Refuses: bots are deleted in the app.';

create or replace function relay_v0.key_json(key relay_v0.keys) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select to_jsonb(key) - array['user_id', 'origin', 'sealed']
$$;
comment on function relay_v0.key_json is 'What is shown of a key.';

create or replace function public.relay_list_keys(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('data', coalesce(jsonb_agg(relay_v0.key_json(k) order by k.created_at, k.id), '[]'))
  from relay_v0.keys k where k.user_id = relay_v0.caller()
$$;
comment on function public.relay_list_keys is
  'What is shown of the user''s keys for providers, oldest first. {} → {data: [{id, provider, base_url, last4, created_at}]}.';

create or replace function public.relay_put_key(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
  args alias for $1;
  uid uuid := relay_v0.caller();
  key relay_v0.keys;
begin
  if (select count(*) from relay_v0.keys k
      where k.user_id = uid and (k.provider <> args ->> 'provider' or k.origin <> args ->> 'origin')) >= 32
  then
    perform relay_v0.refuse(409, 'too_many_keys');
  end if;
  insert into relay_v0.keys (user_id, provider, origin, base_url, last4, sealed)
    values (uid, args ->> 'provider', args ->> 'origin', args ->> 'base_url', args ->> 'last4', args ->> 'sealed')
    on conflict (user_id, provider, origin) do update set
      base_url = excluded.base_url, last4 = excluded.last4, sealed = excluded.sealed, created_at = excluded.created_at
    returning * into key;
  return relay_v0.key_json(key);
end
$$;
comment on function public.relay_put_key is
  'Keeps a key in place of the one of the same provider and origin; 32 keys at most. {provider, origin, base_url, last4, sealed} → what is shown of it.';

create or replace function public.relay_reseal_key(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
begin
  update relay_v0.keys k set sealed = $1 ->> 'new'
    where k.id = ($1 ->> 'id')::bigint and k.user_id = relay_v0.caller() and k.sealed = $1 ->> 'old';
  if not found then
    perform relay_v0.refuse(404, 'key_not_found');
  end if;
  return 'null';
end
$$;
comment on function public.relay_reseal_key is
  'Replaces the sealed form of a key if it is still the old one. {id, old, new} → null.';

create or replace function public.relay_delete_key(jsonb) returns jsonb
language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
begin
  delete from relay_v0.keys k where k.id = ($1 ->> 'id')::bigint and k.user_id = relay_v0.caller();
  if not found then
    perform relay_v0.refuse(404, 'key_not_found');
  end if;
  return 'null';
end
$$;
comment on function public.relay_delete_key is 'Removes a key. {id} → null.';

create or replace function public.relay_version(jsonb) returns jsonb
language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('version', 1)
$$;
comment on function public.relay_version is 'Which version of the contract these functions are. {} → {version}.';

-- Functions are executable by everybody unless that is taken back, whatever the default privileges of the schema are.
do $$
declare
  name regprocedure;
begin
  for name in
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'relay_v0'::regnamespace
      or (p.pronamespace = 'public'::regnamespace and p.proname like 'relay\_%')
  loop
    execute format('revoke execute on function %s from public, anon, authenticated', name);
    execute format('grant execute on function %s to authenticated', name);
  end loop;
  -- Called by the relay without a user: one by write token, the other tells nothing but a number.
  grant execute on function public.relay_finish(jsonb), public.relay_version(jsonb) to anon;
end
$$;

-- PostgREST, where there is one, learns of the functions at once.
notify pgrst, 'reload schema';

commit;
