-- Moves a Storytellr database into the relay's own tables: stories, their texts and their bots, without the bots' keys.
--
-- 1. If `storytellr-v0.sql` was in use: stop the relay, see that its outbox is empty, apply `storytellr-v0-drop.sql`.
-- 2. Apply `supabase/migrations/`: `supabase db push`, or `storytellr-relay migrate`.
-- 3. `psql -v ON_ERROR_STOP=1 -f` this file, as the owner of all the tables. It says what it did.
--
-- The old tables are read and stay as they are. It is one transaction, which compares what it wrote with what it read,
-- and leaves nothing behind if anything differs. It can be applied again: what was moved is not moved twice, what the
-- app has added since is. Once the old tables are gone, `drop schema relay_v0 cascade` removes the notes of that.
--
-- Bots, conversations and messages keep their ids. A story becomes a trunk: a message's parent is the one before it by
-- time, then id. Its own text is the first variant of a message, its alternatives are the next.
--
-- What belongs to nobody is not moved. Messages and alternatives without a user become their conversation's. Those of
-- another user are not moved: whoever reads the conversation has never seen them, and policies that look at nothing but
-- the row's user let anybody add rows to a conversation.

begin;

do $$
begin
  if to_regclass('public.relay_messages') is null then
    raise exception 'the relay''s own tables are not in this database'
      using hint = 'Apply supabase/migrations/ first; before that, if the functions of storytellr-v0.sql are in use, '
        'storytellr-v0-drop.sql.';
  end if;
  if to_regclass('public.bots') is null or to_regclass('public.conversations') is null
    or to_regclass('public.messages') is null or to_regclass('public.message_alternatives') is null
  then
    raise exception 'Storytellr''s tables bots, conversations, messages, message_alternatives are not all here'
      using hint = 'There is nothing to move.';
  end if;
  if exists (
    select from unnest(array['bots', 'conversations', 'messages', 'message_alternatives', 'relay_bots',
      'relay_conversations', 'relay_messages', 'relay_variants', 'relay_generations', 'relay_keys']) as name
    where row_security_active(format('public.%I', name)))
  then
    raise exception 'row-level security hides rows from %', current_user
      using hint = 'Apply this as the owner of the tables.';
  end if;
end
$$;

-- Nobody writes in the meantime; reading goes on.
lock table public.bots, public.conversations, public.messages, public.message_alternatives in share mode;
lock table public.relay_bots, public.relay_conversations, public.relay_messages, public.relay_variants,
  public.relay_generations, public.relay_keys in share row exclusive mode;

create schema if not exists relay_v0;
revoke all on schema relay_v0 from public, anon, authenticated;

create table if not exists relay_v0.moved (
  table_name text not null check (table_name in ('bots', 'conversations', 'messages', 'message_alternatives')),
  id integer not null,
  variant_id bigint,
  moved_at timestamptz not null default now(),
  primary key (table_name, id)
);
comment on table relay_v0.moved is 'Which rows of Storytellr''s tables are in the relay''s own.';
comment on column relay_v0.moved.variant_id is 'The variant that has the text of this message or alternative.';
alter table relay_v0.moved enable row level security;
revoke all on relay_v0.moved from public, anon, authenticated;

-- Who may own rows: everybody who does, but where there are accounts, only those who have one.
create temp table v0_users on commit drop as
  select b.user_id as id from public.bots b where b.user_id is not null
  union
  select c.user_id from public.conversations c where c.user_id is not null;
do $$
begin
  if to_regclass('auth.users') is not null then
    delete from pg_temp.v0_users u where not exists (select from auth.users a where a.id = u.id);
  end if;
end
$$;
alter table pg_temp.v0_users add primary key (id);

-- What is known beside the rows, if the functions of storytellr-v0.sql were in use.
create temp table v0_generations (
  message_id integer, alternative_id integer, fingerprint text, is_announced boolean, user_message_id integer,
  bot_id integer, model text, status text, reasoning text, finish_reason text, usage jsonb, error jsonb,
  ended_at timestamptz
) on commit drop;
do $$
begin
  if to_regclass('relay_v0.generations') is not null then
    insert into pg_temp.v0_generations
      select g.message_id, g.alternative_id, g.fingerprint, g.is_announced, g.user_message_id, g.bot_id, g.model,
        g.status, g.reasoning, g.finish_reason, g.usage, g.error, g.ended_at
      from relay_v0.generations g where g.message_id is not null;
  end if;
end
$$;
create index on pg_temp.v0_generations (alternative_id);
create index on pg_temp.v0_generations (message_id) where alternative_id is null;
analyze pg_temp.v0_users, pg_temp.v0_generations;

-- Keys that users have given to the relay itself. They are sealed for their user and not for their row, so they open there
-- as well. A key that is there already is newer.
do $$
declare
  number bigint;
begin
  if to_regclass('relay_v0.keys') is not null then
    with left_behind as (
      delete from relay_v0.keys k using pg_temp.v0_users u where u.id = k.user_id returning k.*
    )
    insert into public.relay_keys (user_id, provider, origin, base_url, last4, sealed, created_at)
      select user_id, provider, origin, base_url, last4, sealed, created_at from left_behind
      on conflict (user_id, provider, origin) do nothing;
    get diagnostics number = row_count;
    raise notice 'moved: % sealed keys', number;
  end if;
end
$$;

-- Bots. The providers are those of src/provider/habits.rs; the keys are not even read.
create temp table v0_bots on commit drop as
  select b.id, b.user_id, coalesce(b.name, '') as name,
    case when b.is_openrouter then 'openrouter' when a.url is null then 'deepseek' else coalesce(k.name, 'custom') end
      as provider,
    b.model, case when not b.is_openrouter and k.name is null then a.url end as base_url,
    coalesce(b.advanced_prompt, '') as system_prompt,
    case when b.temperature between 0 and 2 then b.temperature end as temperature,
    s.max_tokens,
    -- The app never weighed an answer against the context, so a bot may have less context than answer. It goes on to
    -- work.
    s.context_size + case when s.max_tokens >= s.context_size then s.max_tokens else 0 end as context_size,
    case when b.reasoning then 'medium' end as reasoning, coalesce(b.show_reasoning, false) as show_reasoning,
    b.is_default, b.created_at, b.updated_at
  from public.bots b
    join pg_temp.v0_users u on u.id = b.user_id
    cross join lateral (
      select nullif(regexp_replace(btrim(b.access_path, E' \t\r\n'), '(/chat/completions)?/*$', '', 'i'), '') as url,
        lower(regexp_replace(btrim(b.access_path, E' \t\r\n'), '(/chat/completions)?/*$', '', 'i')) as lower_url) a
    cross join lateral (
      select case when b.max_tokens > 0 then b.max_tokens::bigint end as max_tokens,
        case when b.context_size > 0 then b.context_size::bigint else 10000 end as context_size) s
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
      ('ollama', 'http://127.0.0.1:11434/v1')) k (name, base_url) on k.base_url = a.lower_url
  where not exists (select from relay_v0.moved v where v.table_name = 'bots' and v.id = b.id);

create temp table v0_conversations on commit drop as
  select c.id, c.user_id, c.title, c.bot_id, coalesce(c.created_at, c.last_message_at, 'epoch') as created_at,
    coalesce(c.last_message_at, c.created_at, 'epoch') as updated_at
  from public.conversations c join pg_temp.v0_users u on u.id = c.user_id
  where not exists (select from relay_v0.moved v where v.table_name = 'conversations' and v.id = c.id);

-- Whole stories, with what was moved before and is there still: a new row may belong between two old ones.
create temp table v0_messages on commit drop as
  select m.id, m.conversation_id, coalesce(n.user_id, r.user_id) as user_id, m.is_user_author,
    coalesce(m.t, 'epoch') as created_at, v.id is null as is_new,
    row_number() over story as place, lag(m.id) over story as parent_id
  from public.messages m
    left join pg_temp.v0_conversations n on n.id = m.conversation_id
    left join relay_v0.moved vc on vc.table_name = 'conversations' and vc.id = m.conversation_id
    left join public.relay_conversations r on r.id = vc.id
    left join relay_v0.moved v on v.table_name = 'messages' and v.id = m.id
  where (m.user_id = coalesce(n.user_id, r.user_id) or (m.user_id is null and coalesce(n.id, r.id) is not null))
    and (v.id is null or exists (select from public.relay_messages o where o.id = m.id))
  window story as (partition by m.conversation_id order by m.t nulls first, m.id);
alter table pg_temp.v0_messages add primary key (id);
create index on pg_temp.v0_messages (conversation_id, place);
analyze pg_temp.v0_bots, pg_temp.v0_conversations, pg_temp.v0_messages;

-- What was moved is noted, so a row with the same id is somebody else's.
do $$
declare
  taken record;
begin
  select 'relay_bots' as table_name, count(*) as number, min(r.id) as first into taken
    from pg_temp.v0_bots b join public.relay_bots r on r.id = b.id having count(*) > 0
  union all
  select 'relay_conversations', count(*), min(r.id)
    from pg_temp.v0_conversations c join public.relay_conversations r on r.id = c.id having count(*) > 0
  union all
  select 'relay_messages', count(*), min(r.id)
    from pg_temp.v0_messages m join public.relay_messages r on r.id = m.id where m.is_new having count(*) > 0
  limit 1;
  if found then
    raise exception 'public.% has % rows of other origin with ids that rows to be moved have, the first is %',
      taken.table_name, taken.number, taken.first
      using hint = 'Move before the relay''s own tables are used, or delete those rows if they are not needed.';
  end if;
end
$$;

insert into public.relay_bots (id, user_id, name, provider, model, base_url, system_prompt, temperature, max_tokens,
  context_size, reasoning, show_reasoning, is_default, created_at, updated_at)
overriding system value
select id, user_id, name, provider, model, base_url, system_prompt, temperature, max_tokens, context_size, reasoning,
  show_reasoning, is_default, created_at, updated_at
from pg_temp.v0_bots;
insert into relay_v0.moved (table_name, id) select 'bots', id from pg_temp.v0_bots;

-- Bots that may be named: moved, there still, and of the same user.
create temp table v0_named_bots on commit drop as
  select b.id, b.user_id from relay_v0.moved v join public.relay_bots b on b.id = v.id where v.table_name = 'bots';

insert into public.relay_conversations (id, user_id, title, bot_id, created_at, updated_at)
overriding system value
select c.id, c.user_id, c.title, b.id, c.created_at, c.updated_at
from pg_temp.v0_conversations c left join pg_temp.v0_named_bots b on b.id = c.bot_id and b.user_id = c.user_id;
insert into relay_v0.moved (table_name, id) select 'conversations', id from pg_temp.v0_conversations;

insert into public.relay_messages (id, conversation_id, user_id, parent_id, role, created_at)
overriding system value
select m.id, m.conversation_id, m.user_id, m.parent_id, case when m.is_user_author then 'user' else 'assistant' end,
  m.created_at
from pg_temp.v0_messages m where m.is_new;
update public.relay_messages r set parent_id = m.parent_id
  from pg_temp.v0_messages m where r.id = m.id and not m.is_new and r.parent_id is distinct from m.parent_id;

-- Variants, in the order in which they are to be listed: by message, its own text, its alternatives.
create temp table v0_variants on commit drop as
  select row_number() over (order by m.conversation_id, m.place, x.is_own desc, x.t nulls first, x.id) as number, x.id,
    x.is_own, m.id as message_id, m.user_id, x.content,
    case
      when x.is_streaming then 'interrupted'
      when x.is_complete is not false then 'complete'
      when x.status in ('stopped', 'failed') then x.status
      else 'interrupted' end as status,
    coalesce(x.reasoning, '') as reasoning, b.id as bot_id, x.model, x.finish_reason, x.usage, x.error,
    coalesce(x.t, 'epoch') as created_at, x.stream_id, x.fingerprint, x.is_announced, x.user_message_id, x.ended_at
  from pg_temp.v0_messages m
    join (
      select o.id as message_id, true as is_own, o.id, o.content, o.t, o.is_streaming, o.is_complete, o.stream_id,
        g.fingerprint, coalesce(g.is_announced, false) as is_announced, g.user_message_id, g.bot_id, g.model, g.status,
        g.reasoning, g.finish_reason, g.usage, g.error, g.ended_at, null::uuid as user_id
      from public.messages o left join pg_temp.v0_generations g on g.message_id = o.id and g.alternative_id is null
      where not exists (select from relay_v0.moved v where v.table_name = 'messages' and v.id = o.id)
      union all
      select a.parent_message_id, false, a.id, a.content, a.t, a.is_streaming, a.is_complete, a.stream_id,
        g.fingerprint, coalesce(g.is_announced, true), null, g.bot_id, g.model, g.status,
        g.reasoning, g.finish_reason, g.usage, g.error, g.ended_at, a.user_id
      from public.message_alternatives a left join pg_temp.v0_generations g on g.alternative_id = a.id
      where not exists (select from relay_v0.moved v where v.table_name = 'message_alternatives' and v.id = a.id)
    ) x on x.message_id = m.id and (x.user_id is null or x.user_id = m.user_id)
    left join pg_temp.v0_named_bots b on b.id = x.bot_id and b.user_id = m.user_id;

-- Their ids are taken from the sequence in one piece, so that the order of the ids is that of the list.
alter table pg_temp.v0_variants add column variant_id bigint;
do $$
declare
  sequence regclass := pg_get_serial_sequence('public.relay_variants', 'id');
  first bigint;
begin
  if exists (select from pg_temp.v0_variants) then
    first := nextval(sequence);
    update pg_temp.v0_variants set variant_id = first + number - 1;
    perform setval(sequence, (select max(variant_id) from pg_temp.v0_variants));
  end if;
end
$$;
alter table pg_temp.v0_variants add unique (variant_id);
create index on pg_temp.v0_variants (message_id);
analyze pg_temp.v0_variants;

insert into public.relay_variants (id, message_id, user_id, content, reasoning, status, bot_id, model, finish_reason,
  usage, error, created_at)
overriding system value
select variant_id, message_id, user_id, content, reasoning, status, bot_id, model, finish_reason, usage, error,
  created_at
from pg_temp.v0_variants order by number;
insert into relay_v0.moved (table_name, id, variant_id)
  select case when is_own then 'messages' else 'message_alternatives' end, id, variant_id from pg_temp.v0_variants;
analyze relay_v0.moved, public.relay_messages, public.relay_variants;

-- The story shows the newest alternative that is active and does not stream, else the message's own text. Where a
-- message was moved before, somebody may have chosen since, and only what is new changes that.
create temp table v0_active on commit drop as
  select distinct on (x.message_id) x.message_id, v.variant_id
  from (
    select m.id as message_id, true as is_own, m.id, null::timestamptz as t
    from pg_temp.v0_messages m
    union all
    select a.parent_message_id, false, a.id, a.t from public.message_alternatives a
    where a.is_active and a.is_streaming is not true
  ) x
    join relay_v0.moved v
      on v.id = x.id and v.table_name = case when x.is_own then 'messages' else 'message_alternatives' end
  where x.message_id in (select n.message_id from pg_temp.v0_variants n)
  order by x.message_id, x.is_own, x.t desc nulls last, x.id desc;
update public.relay_messages r set active_variant_id = a.variant_id
  from pg_temp.v0_active a join pg_temp.v0_messages m on m.id = a.message_id
  where r.id = a.message_id
    and (m.is_new or exists (select from pg_temp.v0_variants n where n.variant_id = a.variant_id));

-- The head goes on to the last message, unless somebody has gone on from elsewhere since.
update public.relay_conversations c set
  head_id = s.last_id,
  updated_at = case when exists (select from pg_temp.v0_conversations n where n.id = c.id) then c.updated_at
    else greatest(c.updated_at, s.new_at) end
  from (
    select m.conversation_id, (array_agg(m.id order by m.place desc))[1] as last_id,
      (array_agg(m.id order by m.place desc) filter (where not m.is_new))[1] as last_moved_id,
      max(m.created_at) filter (where m.is_new) as new_at
    from pg_temp.v0_messages m group by m.conversation_id having bool_or(m.is_new)
  ) s
  where c.id = s.conversation_id and c.head_id is not distinct from s.last_moved_id;

-- By its name a stream is found. Of those that have one name, a message before an alternative, then the oldest. No turn
-- has the fingerprint `v0`, so a name that is used again is refused.
create temp table v0_streams on commit drop as
  with inserted as (
    insert into public.relay_generations (user_id, stream_id, fingerprint, variant_id, user_message_id, is_announced,
      result, ended_at)
    select distinct on (n.user_id, n.stream_id) n.user_id, n.stream_id, coalesce(n.fingerprint, 'v0'), n.variant_id,
      u.id, n.is_announced, jsonb_build_object('message_id', n.message_id, 'variant_id', n.variant_id),
      coalesce(n.ended_at, n.created_at)
    from pg_temp.v0_variants n
      left join pg_temp.v0_messages u on u.id = n.user_message_id and u.user_id = n.user_id
    where n.stream_id ~ '^[A-Za-z0-9._-]{1,128}$'
    order by n.user_id, n.stream_id, n.is_own desc, n.created_at, n.id
    on conflict (user_id, stream_id) do nothing
    returning variant_id
  )
  select variant_id from inserted;

-- New rows begin well above those of the app, so that what the app adds until it is switched over can keep its ids.
do $$
declare
  room constant bigint := 1000000;
  name text;
  old_max bigint;
  new_max bigint;
  sequence regclass;
begin
  foreach name in array array['bots', 'conversations', 'messages'] loop
    sequence := pg_get_serial_sequence('public.relay_' || name, 'id');
    execute format('select max(id) from public.%I', name) into old_max;
    execute format('select max(id) from public.%I', 'relay_' || name) into new_max;
    perform setval(sequence, greatest(old_max + room, new_max, pg_sequence_last_value(sequence)))
      where old_max is not null;
  end loop;
end
$$;

-- Is everything there? Read again from the old tables, and not from what was made of them above.
create temp table v0_shown on commit drop as
  select c.id as conversation_id, array(
    select coalesce(
      (select a.content from public.message_alternatives a
       where a.parent_message_id = m.id and a.is_active and a.is_streaming is not true
         and (a.user_id is null or a.user_id = c.user_id)
       order by a.t desc nulls last, a.id desc limit 1),
      m.content)
    from public.messages m
    where m.conversation_id = c.id and (m.user_id is null or m.user_id = c.user_id)
    order by m.t nulls first, m.id) as texts
  from public.conversations c join relay_v0.moved v on v.table_name = 'conversations' and v.id = c.id
  where v.moved_at = now();

create temp table v0_faults on commit drop as
  select 'bots were not moved' as fault, count(*) as number, min(b.id) as first
  from public.bots b join pg_temp.v0_users u on u.id = b.user_id
    left join relay_v0.moved v on v.table_name = 'bots' and v.id = b.id
    left join public.relay_bots r on r.id = b.id and r.user_id = b.user_id and r.model = b.model
      and r.system_prompt = coalesce(b.advanced_prompt, '')
  where v.id is null or (v.moved_at = now() and r.id is null)
  union all
  select 'conversations were not moved', count(*), min(c.id)
  from public.conversations c join pg_temp.v0_users u on u.id = c.user_id
    left join relay_v0.moved v on v.table_name = 'conversations' and v.id = c.id
    left join public.relay_conversations r on r.id = c.id and r.user_id = c.user_id and r.title = c.title
  where v.id is null or (v.moved_at = now() and r.id is null)
  union all
  select 'messages were not moved, or not with their texts', count(*), min(m.id)
  from public.messages m join public.conversations c on c.id = m.conversation_id
    join public.relay_conversations rc on rc.id = c.id and rc.user_id = c.user_id
    left join relay_v0.moved v on v.table_name = 'messages' and v.id = m.id
    left join public.relay_messages r on r.id = m.id and r.conversation_id = c.id and r.user_id = c.user_id
      and r.role = case when m.is_user_author then 'user' else 'assistant' end
    left join public.relay_variants t on t.id = v.variant_id and t.message_id = r.id and t.content = m.content
  where (m.user_id is null or m.user_id = c.user_id) and (v.id is null or (v.moved_at = now() and t.id is null))
  union all
  select 'alternatives were not moved, or not with their texts', count(*), min(a.id)
  from public.message_alternatives a join public.relay_messages r on r.id = a.parent_message_id
    join relay_v0.moved vm on vm.table_name = 'messages' and vm.id = r.id
    left join relay_v0.moved v on v.table_name = 'message_alternatives' and v.id = a.id
    left join public.relay_variants t on t.id = v.variant_id and t.message_id = r.id and t.content = a.content
  where (a.user_id is null or a.user_id = r.user_id) and (v.id is null or (v.moved_at = now() and t.id is null))
  union all
  select 'messages have their texts in another order', count(*), min(m.id)
  from public.messages m join relay_v0.moved v on v.table_name = 'messages' and v.id = m.id and v.moved_at = now()
    join public.relay_messages r on r.id = m.id
  where array(select t.content from public.relay_variants t where t.message_id = m.id order by t.id)
    <> m.content || array(
      select a.content from public.message_alternatives a
      where a.parent_message_id = m.id and (a.user_id is null or a.user_id = r.user_id)
      order by a.t nulls first, a.id)
  union all
  select 'conversations read otherwise than before', count(*), min(s.conversation_id)
  from pg_temp.v0_shown s join public.relay_conversations c on c.id = s.conversation_id
    cross join lateral (
      with recursive path as (
        select m.parent_id, m.active_variant_id, 1 as depth from public.relay_messages m where m.id = c.head_id
        union all
        select m.parent_id, m.active_variant_id, p.depth + 1
        from path p join public.relay_messages m on m.id = p.parent_id
      )
      select array(
        select t.content from path p left join public.relay_variants t on t.id = p.active_variant_id
        order by p.depth desc) as texts) p
  where p.texts <> s.texts
  union all
  select 'messages are not where they belong', count(*), min(m.id)
  from pg_temp.v0_messages m left join public.relay_messages r on r.id = m.id
  where r.id is null or r.parent_id is distinct from m.parent_id;

do $$
declare
  fault record;
  number bigint;
begin
  for fault in select * from pg_temp.v0_faults f where f.number > 0 loop
    raise exception 'nothing was moved: % %, the first is %', fault.number, fault.fault, fault.first;
  end loop;

  raise notice 'moved: % bots, % conversations, % messages, % alternatives; all texts compared, all equal',
    (select count(*) from pg_temp.v0_bots), (select count(*) from pg_temp.v0_conversations),
    (select count(*) from pg_temp.v0_variants where is_own),
    (select count(*) from pg_temp.v0_variants where not is_own);
  select count(*) into number from pg_temp.v0_variants where status = 'interrupted';
  raise notice '% of these texts were never finished, or streamed still: they are interrupted', number;
  raise notice '% streams are found by their names', (select count(*) from pg_temp.v0_streams);
  select count(*) into number from pg_temp.v0_variants n
    where n.stream_id is not null and not exists (select from pg_temp.v0_streams s where s.variant_id = n.variant_id);
  raise notice '% texts have lost the name of their stream: another text has it, or it is not one', number;
  select count(*) into number from pg_temp.v0_messages m join public.messages o on o.id = m.id
    where m.is_new and o.user_id is null;
  raise notice '% messages had no user: they are their conversation''s', number;
  select count(*) into number
    from pg_temp.v0_conversations n join public.conversations c on c.id = n.id
      join public.relay_conversations r on r.id = n.id
    where c.bot_id is not null and r.bot_id is null;
  raise notice '% conversations were bound to a bot of somebody else: they are bound to none', number;
  raise notice 'not moved: % bots and % conversations of nobody, or of users without an account, with % messages',
    (select count(*) from public.bots b where not exists (select from pg_temp.v0_users u where u.id = b.user_id)),
    (select count(*) from public.conversations c
     where not exists (select from pg_temp.v0_users u where u.id = c.user_id)),
    (select count(*) from public.messages m join public.conversations c on c.id = m.conversation_id
     where not exists (select from pg_temp.v0_users u where u.id = c.user_id));
  raise notice 'not moved: % messages and % alternatives of another user than their conversation''s',
    (select count(*) from public.messages m join public.conversations c on c.id = m.conversation_id
     where m.user_id <> c.user_id),
    (select count(*) from public.message_alternatives a join public.messages m on m.id = a.parent_message_id
       join public.conversations c on c.id = m.conversation_id
     where a.user_id <> c.user_id);
  select count(*) into number
    from relay_v0.moved v join public.relay_variants t on t.id = v.variant_id
      left join public.messages m on v.table_name = 'messages' and m.id = v.id
      left join public.message_alternatives a on v.table_name = 'message_alternatives' and a.id = v.id
    where v.moved_at <> now() and t.content <> coalesce(m.content, a.content);
  raise notice '% texts have been changed in the app since they were moved: the relay''s are as they were', number;
end
$$;

commit;
