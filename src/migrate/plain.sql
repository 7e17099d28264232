-- What Supabase has and a plain Postgres has not: the roles of its API, and who is asking. Everything here is made only
-- if it is missing, so on Supabase nothing happens.

do $$
declare
  -- From version 16 on a role can be a member of another without being able to become it.
  may_set text := case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end;
begin
  if not exists (select from pg_roles where rolname = 'anon') then
    create role anon nologin noinherit;
  end if;
  if not exists (select from pg_roles where rolname = 'authenticated') then
    create role authenticated nologin noinherit;
  end if;
  -- The relay takes these roles, so whoever migrates and serves by one address must be able to.
  if not pg_has_role('anon', may_set) then
    execute format('grant anon to %I', current_user);
  end if;
  if not pg_has_role('authenticated', may_set) then
    execute format('grant authenticated to %I', current_user);
  end if;
  if to_regnamespace('auth') is null then
    create schema auth;
  end if;
  if to_regprocedure('auth.uid()') is null then
    create function auth.uid() returns uuid language sql stable set search_path = '' as
      'select (nullif(current_setting(''request.jwt.claims'', true), '''')::jsonb ->> ''sub'')::uuid';
    grant usage on schema auth to anon, authenticated;
    grant usage on schema public to anon, authenticated;
  end if;
end
$$;
