-- A made-up Storytellr database, the same at every run, to test `supabase/adapters/` on: a thousand conversations of
-- fifty messages, with whatever rows of such a database may have.
--
-- Needs `storytellr-v0-schema.sql`. `set made_up.conversations = '50'` before it makes fewer.

begin;

create function pg_temp.conversations() returns int language sql as $$
  select coalesce(nullif(current_setting('made_up.conversations', true), ''), '1000')::int
$$;

create function pg_temp.users() returns int language sql as $$ select 20 $$;

create function pg_temp.user_of(n int) returns uuid language sql as $$
  select ('00000000-0000-4000-8000-' || lpad(((n % pg_temp.users()) + 1)::text, 12, '0'))::uuid
$$;

-- Whole numbers from 0 on that look like chance.
create function pg_temp.chance(seed text, below int) returns int language sql as $$
  select (('x' || substr(md5(seed), 1, 7))::bit(28)::int % below)
$$;

create function pg_temp.text_of(seed text) returns text language sql as $body$
  select case pg_temp.chance(seed || 'text', 12)
    when 0 then ''
    when 1 then E'„Wer da?“ \U0001F98A rief sie.\n\n— Никого… 誰もいない。'
    when 2 then E'e\u0301 and \u00E9 are two; so are \u200B and nothing; \U0001F469\u200D\U0001F680 is one.'
    when 3 then E'  leading, trailing\t and \\ back\\slashes "quoted" ''single'' $$dollars$$ \r\n '
    when 4 then repeat(md5(seed) || ' ', 400)
    else 'Once upon ' || md5(seed) || ' there was ' || seed || '.'
  end
$body$;

insert into public.users select pg_temp.user_of(n) from generate_series(0, pg_temp.users() - 1) n;
insert into public.characters (user_id) select pg_temp.user_of(n) from generate_series(0, pg_temp.users() - 1) n;
insert into public.personas (user_id) select pg_temp.user_of(n) from generate_series(0, pg_temp.users() - 1) n;

-- Three bots a user, of every kind; two bots of nobody.
insert into public.bots (model, access_key, access_path, context_size, max_tokens, advanced_prompt, temperature, name,
  is_default, user_id, created_at, updated_at, reasoning, show_reasoning, is_openrouter, openrouter_key)
select 'model-' || n % 5, 'sk-made-up-' || n,
  (array[null, '', 'https://api.deepseek.com', 'https://api.openai.com/v1/',
    'https://llm.example.com/v1/chat/completions', 'https://openrouter.ai/api/v1', ' HTTPS://API.MISTRAL.AI/v1 ',
    'http://10.0.0.7:8000/v1'])[n % 8 + 1],
  (array[10000, null, 0, 4096])[n % 4 + 1], (array[1000, 0, -1, null, 8192])[n % 5 + 1],
  (array[null, '', 'You tell stories. 📖'])[n % 3 + 1], (array[0.7, null, 0, 2, 3])[n % 5 + 1],
  (array['Bot ' || n, null, ''])[n % 3 + 1], n % 3 = 0,
  case when n < 3 * pg_temp.users() then pg_temp.user_of(n / 3) end,
  timestamptz '2025-01-01 00:00+00' + n * interval '1 hour', timestamptz '2025-02-01 00:00+00' + n * interval '1 hour',
  (array[true, false, null])[n % 3 + 1], (array[null, true, false])[n % 3 + 1], n % 7 = 0,
  case when n % 7 = 0 then 'sk-or-made-up-' || n end
from generate_series(0, 3 * pg_temp.users() + 1) n order by n;

-- Some belong to nobody, some are empty, some are bound to a bot that is another user's.
insert into public.conversations (character_id, persona_id, title, created_at, user_id, message_count, last_message_at,
  bot_id)
select n % pg_temp.users() + 1, n % pg_temp.users() + 1, case when n % 11 = 0 then '' else 'Story ' || n || ' 🦊' end,
  case when n % 101 <> 0 then timestamptz '2025-03-01 00:00+00' + n * interval '1 minute' end,
  case when n % 97 <> 0 then pg_temp.user_of(n) end, 50,
  case when n % 13 <> 0 then timestamptz '2025-04-01 00:00+00' + n * interval '1 minute' end,
  case when n % 83 = 0 then 3 * (pg_temp.chance('bot' || n, pg_temp.users())) + 1
    when n % 3 = 0 then 3 * (n % pg_temp.users()) + n % 2 + 1 end
from generate_series(1, pg_temp.conversations()) n order by n;

-- Equal times, times out of the order of the ids, none at all, times with microseconds; answers that were saved twice
-- under one name, names that no relay of today takes, rows that stream for ever, rows whose user is another or nobody.
insert into public.messages (conversation_id, content, t, is_user_author, is_active, is_streaming, is_complete,
  stream_id, user_id)
select c.id, pg_temp.text_of(c.id || '.' || i),
  case
    when c.id % 103 = 0 and i = 7 then null
    when i % 10 = 4 then at.t - interval '1 minute'
    when i % 17 = 0 then at.t - interval '3 minutes 1 microsecond'
    else at.t end,
  i % 2 = 1, i % 19 <> 0,
  c.id % 50 = 0 and i = 50, case when i % 2 = 0 and i % 16 = 0 then false when i % 21 = 0 then null else true end,
  case
    when i % 2 = 1 or i % 12 = 0 then null
    when i % 22 = 0 then 'no relay''s name, ' || i
    when i % 14 = 0 then 's-' || c.id || '-twice'
    when i % 8 = 0 then 'temp-stream-' || c.id || '-' || i
    else 's-' || 1740000000000 + c.id * 1000 + i end,
  case when i % 29 = 0 then null when i % 37 = 0 then pg_temp.user_of(c.id + 1) else c.user_id end
from public.conversations c
  cross join generate_series(1, 50) i
  cross join lateral (
    select timestamptz '2025-03-01 00:00+00' + c.id * interval '1 minute' + i * interval '1 minute 7 microseconds' as t
  ) at
where c.id % 89 <> 0
order by c.id, i;

-- Up to three alternatives of a message: one active, several, none; some stream for ever, some are of a user's message,
-- some in a conversation that is not their message's, which the Python relay took from the client.
insert into public.message_alternatives (conversation_id, parent_message_id, content, t, is_user_author, is_active,
  is_streaming, is_complete, stream_id, user_id)
select case when s.chance % 41 = 0 then m.conversation_id % pg_temp.conversations() + 1 else m.conversation_id end,
  m.id,
  case when s.chance % 6 = 0 then '' else pg_temp.text_of('a' || m.id || '.' || k) end,
  case when s.chance % 43 = 0 then null when s.chance % 5 = 0 then timestamptz '2025-05-01 00:00+00'
    else timestamptz '2025-05-01 00:00+00' + (4 - k) * interval '1 minute' end,
  m.is_user_author, (array[true, true, false, null])[s.chance % 4 + 1], s.chance % 6 = 0, s.chance % 6 <> 0,
  case when s.chance % 7 <> 0 then 'reroll-' || 1750000000000 + m.id / 3 end,
  case when s.chance % 31 = 0 then null when s.chance % 37 = 0 then pg_temp.user_of(m.conversation_id + 1)
    else m.user_id end
from public.messages m
  cross join generate_series(1, 3) k
  cross join lateral (select pg_temp.chance('s' || m.id || '.' || k, 10000) as chance) s
where k <= pg_temp.chance('k' || m.id, 4) and (not m.is_user_author or m.id % 15 = 0)
  and pg_temp.chance('has' || m.id, 3) = 0
order by m.id, k;

analyze public.bots, public.conversations, public.messages, public.message_alternatives;

commit;
