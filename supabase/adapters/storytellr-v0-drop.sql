-- Takes the functions of `storytellr-v0.sql` away, so that the migrations can be applied, or another relay can serve.
--
-- The app's tables and rows are left alone. `relay_v0.generations` stays: `storytellr-v0-move.sql` reads from it how
-- each answer ended; and so does `relay_v0.keys`, whose sealed keys it moves. Who wants it gone too, applies `drop schema relay_v0 cascade`.
--
-- Stop the relay first, and see that its outbox is empty: a text that it has not saved yet can be saved by these
-- functions alone. While a generation runs this refuses.

begin;

do $$
begin
  if to_regclass('public.relay_messages') is not null then
    raise exception 'the relay''s own tables are in this database: its functions are those of supabase/migrations/'
      using hint = 'There is nothing to take away.';
  end if;
  if to_regclass('relay_v0.generations') is null then
    raise exception 'the functions over Storytellr''s present tables are not in this database'
      using hint = 'There is nothing to take away.';
  end if;
end
$$;

-- Whoever begins a generation now waits, and then finds no function to begin it with.
lock table relay_v0.generations in access exclusive mode;

do $$
declare
  running bigint;
  until timestamptz;
begin
  select count(*), max(expires_at) into running, until from relay_v0.generations
    where fingerprint is not null and result is null and expires_at > now();
  if running > 0 then
    raise exception '% generations are running', running
      using hint = format('Stop the relay, which saves them, and apply this again. They are over by %s.', until);
  end if;
end
$$;

drop function if exists public.relay_begin(jsonb), public.relay_finish(jsonb), public.relay_find_stream(jsonb),
  public.relay_announce_reroll(jsonb), public.relay_list_conversations(jsonb), public.relay_create_conversation(jsonb),
  public.relay_tree(jsonb), public.relay_patch_conversation(jsonb), public.relay_delete_conversation(jsonb),
  public.relay_select_variant(jsonb), public.relay_write_variant(jsonb), public.relay_delete_message(jsonb),
  public.relay_list_bots(jsonb), public.relay_read_bot(jsonb), public.relay_create_bot(jsonb),
  public.relay_update_bot(jsonb), public.relay_delete_bot(jsonb), public.relay_list_keys(jsonb),
  public.relay_put_key(jsonb), public.relay_reseal_key(jsonb), public.relay_delete_key(jsonb), public.relay_version(jsonb);

-- All helpers, and the views that use them. What else is in that schema stays.
do $$
declare
  name regprocedure;
begin
  drop view if exists relay_v0.variants, relay_v0.bots cascade;
  for name in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'relay_v0'::regnamespace loop
    execute format('drop function %s', name);
  end loop;
end
$$;

notify pgrst, 'reload schema';

commit;
