-- What has to hold for every table and every function of the contract, read from the catalog: whoever adds one and
-- forgets its policy, a grant that has to be taken back, an index or a comment is told here.

begin;
select plan(30);
\ir helpers.psql

create temp view relay_functions as
  select p.*, p.oid::regprocedure as signature, n.nspname as schema
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'relay' or (n.nspname = 'public' and p.proname like 'relay\_%');

create temp view relay_foreign_keys as
  select k.*, array(select a.attname::text from unnest(k.conkey) with ordinality u (number, at)
      join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.number order by u.at) as columns
  from pg_constraint k
  where k.contype = 'f' and k.conrelid in (select pg_temp.relay_tables());

-- Whatever anybody was granted, on a table or on one of its columns.
create temp view relay_table_grants as
  select t as relation, coalesce(r.rolname, 'public') as grantee, g.privilege_type as privilege
  from pg_temp.relay_tables() t join pg_class c on c.oid = t
    cross join lateral (
      select (aclexplode(c.relacl)).*
      union
      select (aclexplode(a.attacl)).* from pg_attribute a where a.attrelid = c.oid) g
    left join pg_roles r on r.oid = g.grantee;

-- The tests below are of nothing if these are not found.
select cmp_ok((select count(*) from pg_temp.relay_tables()), '>=', 6::bigint, 'the tables are found');
select cmp_ok((select count(*) from relay_functions where schema = 'public'), '>=', 22::bigint,
  'the functions of the contract are found');
select cmp_ok((select count(*) from relay_functions where schema = 'relay'), '>=', 20::bigint, 'the helpers are found');
select cmp_ok((select count(*) from relay_foreign_keys), '>=', 9::bigint, 'the foreign keys are found');

select is(
  array(select c.oid::regclass::text from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relname like 'relay\_%' and c.relkind in ('v', 'm', 'f')),
  '{}', 'there are no views, which would be read with the rights of their owner');

-- Tables.

select is(
  array(select c.oid::regclass::text from pg_class c
    where c.oid in (select pg_temp.relay_tables()) and not c.relrowsecurity),
  '{}', 'row-level security is on for every table');

select is(
  array(select t::text from pg_temp.relay_tables() t
    where not exists (select from pg_attribute a
      where a.attrelid = t and a.attname = 'user_id' and a.atttypid = 'uuid'::regtype and a.attnotnull)),
  '{}', 'every row of every table has a user');

select is(
  array(select t::text from pg_temp.relay_tables() t
    where (select count(*) from pg_policy p where p.polrelid = t and p.polpermissive) <> 1),
  '{}', 'every table has one policy that opens it');

select is(
  array(select p.polname::text from pg_policy p
    where p.polrelid in (select pg_temp.relay_tables())
      and (p.polroles <> array['authenticated'::regrole::oid] or (p.polpermissive and p.polcmd <> '*'))),
  '{}', 'every policy is to authenticated, and what opens a table does so for all that is done');

-- With the select around it, auth.uid() is called once a query and not once a row, and an index can be used.
select is(
  array(select p.polname::text from pg_policy p
    where p.polrelid in (select pg_temp.relay_tables()) and p.polpermissive
      and (pg_get_expr(p.polqual, p.polrelid) is distinct from '(user_id = ( SELECT auth.uid() AS uid))'
        or pg_get_expr(p.polwithcheck, p.polrelid) is distinct from '(user_id = ( SELECT auth.uid() AS uid))')),
  '{}', 'what opens a table compares the row''s user with (select auth.uid()), for what is read and for what is written');

select is(
  array(select distinct p.polname || ': ' || a.attname
    from pg_policy p join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjid = p.polrelid and d.refobjsubid > 0
      join pg_attribute a on a.attrelid = p.polrelid and a.attnum = d.refobjsubid
    where p.polrelid in (select pg_temp.relay_tables())
      and not exists (select from pg_index i
        where i.indrelid = p.polrelid and i.indkey[0] = a.attnum and i.indpred is null and i.indisvalid)),
  '{}', 'every column that a policy reads is the first of an index');

-- The first column of a foreign key is the id of the row that it names; what it carries along only narrows that down.
select is(
  array(select k.conrelid::regclass || ': ' || k.conname from relay_foreign_keys k
    where not exists (select from pg_index i
      where i.indrelid = k.conrelid and i.indpred is null and i.indisvalid
        and (i.indkey[0] = k.conkey[1]
          or (select array_agg(u.number order by u.number)
            from unnest(i.indkey::int2[]) with ordinality u (number, at) where u.at <= cardinality(k.conkey))
            = (select array_agg(number order by number) from unnest(k.conkey) number)))),
  '{}', 'every foreign key has an index that begins with its first column or with all of them');

select is(
  array(select k.conrelid::regclass || ': ' || k.conname from relay_foreign_keys k
    where k.confrelid in (select pg_temp.relay_tables()) and cardinality(k.conkey) < 2),
  '{}', 'every reference between the tables carries the user, or a row that has one, along');

select is(
  array(select a.attrelid::regclass || '.' || a.attname from pg_attribute a
    where a.attrelid in (select pg_temp.relay_tables()) and a.attname like '%\_id' and a.atttypid = 'bigint'::regtype
      and not exists (select from relay_foreign_keys k where k.conrelid = a.attrelid and k.conkey[1] = a.attnum)),
  array['relay_generations.previous_head_id'], 'every id of another row is a foreign key, with one known exception');

select is(
  array(select t::text from pg_temp.relay_tables() t where coalesce(obj_description(t, 'pg_class'), '') = ''),
  '{}', 'every table has a comment');

select is(
  array(select relation || ': ' || grantee || ' ' || privilege from relay_table_grants
    where grantee in ('anon', 'public')),
  '{}', 'nothing of any table is granted to anon or to public');

select is(
  array(select t || ': ' || privilege
    from pg_temp.relay_tables() t, unnest(array['select', 'insert', 'update', 'references']) privilege
    where has_any_column_privilege('anon', t, privilege)),
  '{}', 'anon can do nothing to any table, whichever way it was granted');

select is(
  array(select relation || ': ' || privilege from relay_table_grants
    where grantee = 'authenticated' and privilege not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')),
  '{}', 'authenticated can do nothing to any table that passes row-level security by');

-- Row ids that somebody chose would be in the way of those that the sequence gives to others.
select is(
  array(select a.attrelid::regclass || '.' || a.attname from pg_attribute a
    where a.attrelid in (select pg_temp.relay_tables()) and a.attname in ('id', 'user_id')
      and (has_column_privilege('authenticated', a.attrelid, a.attnum, 'update')
        or (a.attname = 'id' and has_column_privilege('authenticated', a.attrelid, a.attnum, 'insert')))),
  '{}', 'authenticated chooses no row''s id and gives no row away');

select is(
  array(select c.oid::regclass || ': ' || role
    from pg_class c, unnest(array['anon', 'authenticated']) role
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'S' and c.relname like 'relay\_%'
      and has_sequence_privilege(role, c.oid, 'usage, select, update')),
  '{}', 'nobody reads or moves the sequences that ids come from');

-- Functions.

select is(
  array(select signature::text from relay_functions
    where schema = 'public' and (proargtypes::text <> 'jsonb'::regtype::oid::text or proargnames is not null
      or prorettype <> 'jsonb'::regtype or proretset)),
  '{}', 'every function of the contract takes one unnamed jsonb and returns jsonb');

select is(
  array(select signature::text from relay_functions where prosecdef),
  array['relay_finish(jsonb)'], 'relay_finish alone runs as its owner');

-- Where pg_temp is not named it is searched first, so that a session's own types would be taken for those of Postgres.
select is(
  array(select signature::text from relay_functions
    where coalesce(not proconfig @> array['search_path=pg_catalog, pg_temp'], true)),
  '{}', 'every function looks for names in pg_catalog and nowhere before it');

select is(
  array(select signature::text from relay_functions f, aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) g
    where g.grantee = 0),
  '{}', 'no function may be called by public');

select is(
  array(select signature::text from relay_functions where has_function_privilege('anon', oid, 'execute') order by 1),
  array['relay_finish(jsonb)', 'relay_version(jsonb)'], 'anon may call relay_finish and relay_version and nothing else');

select is(
  array(select signature::text from relay_functions where not has_function_privilege('authenticated', oid, 'execute')),
  '{}', 'authenticated may call every function');

select is(
  array(select signature::text from relay_functions where coalesce(obj_description(oid, 'pg_proc'), '') = ''),
  '{}', 'every function has a comment');

select ok(obj_description('relay'::regnamespace, 'pg_namespace') is not null, 'the schema of the helpers has a comment');

select ok(not has_schema_privilege('anon', 'relay', 'usage'), 'anon does not reach the helpers');

select is(
  array(select privilege from unnest(array['usage', 'create']) privilege
    where has_schema_privilege('authenticated', 'relay', privilege)),
  array['usage'], 'authenticated reaches the helpers and adds none');

select * from finish(true);
rollback;
